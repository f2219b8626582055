//! Files that others see whole or not at all: written aside, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A new file under a hidden name of its own. Dropping removes it, unless it was given another name.
#[derive(Debug)]
pub struct Aside {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl Aside {
    /// Creates it in a folder. The process id is part of its name, so runs in one folder do not meet; what a killed run of
    /// the same id left is passed over. The target's name is not: near the length limit there is no room to add to it.
    ///
    /// # Errors
    /// The folder is missing or no file can be created in it.
    pub fn create(folder: &Path) -> io::Result<Aside> {
        let mut attempt = 0;
        loop {
            let path = folder.join(format!(".step1x-edit-{}-{attempt}.part", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
                result => return result.map(|file| Aside { file, path, renamed: false }),
            }
        }
    }

    /// What is written to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it a name in its folder, in one step, replacing a file that has it.
    ///
    /// # Errors
    /// As for [`fs::rename`]; the file is then gone.
    pub fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true; // another may have taken the free name already
        Ok(())
    }

    /// Gives it a name in its folder that nothing has. A link is made because a rename would replace; a file system without
    /// links gets a rename after a last look.
    ///
    /// # Errors
    /// Something has the name, or the system refuses; the file is then gone.
    pub fn rename_to_free(self, target: &Path) -> io::Result<()> {
        match fs::hard_link(&self.path, target) {
            Ok(()) => Ok(()), // dropping removes the other name
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => Err(error),
            Err(_) if fs::symlink_metadata(target).is_ok() => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => self.rename(target),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn aside(folder: &Path, text: &str) -> Aside {
        let mut aside = Aside::create(folder).unwrap();
        aside.file().write_all(text.as_bytes()).unwrap();
        aside
    }

    #[test]
    fn nothing_stays_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        let names = || fs::read_dir(dir.path()).unwrap().count();
        drop(aside(dir.path(), "dropped"));
        assert_eq!(names(), 0);
        let (a, b) = (aside(dir.path(), "a"), aside(dir.path(), "b"));
        assert_eq!(names(), 2, "two at once do not meet");
        a.rename(&first).unwrap();
        b.rename_to_free(&second).unwrap();
        aside(dir.path(), "c").rename(&first).unwrap();
        assert_eq!(aside(dir.path(), "d").rename_to_free(&second).unwrap_err().kind(), ErrorKind::AlreadyExists);
        aside(dir.path(), "e").rename(&first.join("below a file")).unwrap_err();
        assert_eq!([&first, &second].map(|path| fs::read_to_string(path).unwrap()), ["c", "b"]);
        assert_eq!(names(), 2);
    }
}
