//! A place for the result, secured before the work that makes it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::aside::Aside;

/// An output path that was usable before the work began. Reserving finds out all that can fail before hours of work, and
/// leaves nothing behind; committing writes a file without a name, or a hidden one beside the target, and gives it the
/// target's name in one step, so the target is never half written.
#[derive(Debug)]
pub struct Output {
    /// None: standard output.
    target: Option<PathBuf>,
    force: bool,
}

impl Output {
    /// Standard output, unless it is a terminal.
    ///
    /// # Errors
    ///
    /// If it is a terminal.
    pub fn standard() -> Result<Output> {
        ensure!(
            !io::stdout().is_terminal(),
            "standard output is a terminal; send the picture to a file or a program, such as -o - > edited.png"
        );
        Ok(Output { target: None, force: false })
    }

    /// Reserves `path`; `force` permits replacing a file that is there. A symbolic link to a file is followed.
    ///
    /// # Errors
    ///
    /// If the folder is missing or files cannot be created in it, `path` is a folder or a device, or it exists and
    /// `force` is false.
    pub fn reserve(path: &Path, force: bool) -> Result<Output> {
        let shown = path.display();
        ensure!(path.file_name().is_some(), "the output path {shown:?} names no file; give one such as edited.png");
        let target = resolve(path, force)?;
        let folder = folder_of(&target);
        match fs::metadata(folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => bail!("cannot write {shown}: {} is not a folder", folder.display()),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot write {shown}: no folder {} could be found; create it first", folder.display())
                });
            }
        }
        // A probe, gone at once.
        Aside::create(folder).with_context(|| {
            format!("cannot write {shown}: no file can be created in {}; choose another folder", folder.display())
        })?;
        Ok(Output { target: Some(target), force })
    }

    /// Stores `bytes` durably under the reserved path.
    ///
    /// # Errors
    ///
    /// As for [`Output::commit_unless`].
    pub fn commit(self, bytes: &[u8]) -> Result<()> {
        self.commit_unless(bytes, &mut || Ok(()))
    }

    /// Stores `bytes` durably under the reserved path, or sends them to standard output, unless `last_look`, which is asked
    /// before that can be seen, says no.
    ///
    /// # Errors
    ///
    /// If writing fails (a full disk, for example), without force a file has appeared at the path since it was reserved,
    /// or what `last_look` returns. The target is then as it was, and what was written is gone.
    pub fn commit_unless(self, bytes: &[u8], last_look: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Some(target) = self.target else {
            last_look()?;
            let mut out = io::stdout().lock();
            let written = out.write_all(bytes).and_then(|()| out.flush());
            return written.with_context(|| format!("cannot write the {} bytes of the picture to standard output", bytes.len()));
        };
        let shown = target.display();
        let mut aside =
            Aside::create(folder_of(&target)).with_context(|| format!("cannot write {shown}; is its folder gone?"))?;
        write_durably(aside.file(), bytes).with_context(|| format!("cannot write the {} bytes of {shown}", bytes.len()))?;
        if let (true, Ok(replaced)) = (self.force, fs::metadata(&target)) {
            let kept = aside.file().set_permissions(replaced.permissions());
            kept.with_context(|| format!("cannot keep the permissions of {shown}"))?;
        }
        last_look()?;
        if self.force {
            aside.rename(&target).with_context(|| format!("cannot replace {shown}"))?;
        } else {
            let created = aside.rename_to_free(&target);
            created
                .with_context(|| format!("cannot create {shown}; if something appeared there meanwhile, --force replaces it"))?;
        }
        // The picture is in place; only its survival of a power cut depends on this, and not every system offers it.
        let _ = File::open(folder_of(&target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// The path that will be replaced or created, after checking what is there now.
fn resolve(path: &Path, force: bool) -> Result<PathBuf> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path.to_path_buf()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot use the output path {shown}"));
        }
        Ok(_) => {}
    }
    // A link that leads nowhere has no metadata beyond its own.
    let found = fs::metadata(path).with_context(|| {
        format!("the output path {shown} is a link to a file that does not exist; remove the link or choose another name")
    })?;
    ensure!(!found.is_dir(), "the output path {shown} is a folder; add a file name such as edited.png");
    ensure!(found.is_file(), "the output path {shown} is a device or pipe; give the path of an ordinary file");
    ensure!(force, "{shown} exists; choose another name, or pass --force to replace it");
    fs::canonicalize(path).with_context(|| format!("cannot resolve the output path {shown}"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn write_durably(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The whole chain of causes of a refusal.
    fn refusal(path: &Path, force: bool) -> String {
        format!("{:#}", Output::reserve(path, force).unwrap_err())
    }

    #[test]
    fn commit_stores_the_bytes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let output = Output::reserve(&path, false).unwrap();
        assert!(entries(folder.path()).is_empty(), "nothing waits beside the target");
        output.commit(b"picture").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"picture");
        assert_eq!(entries(folder.path()), ["a.png"]);
    }

    #[test]
    fn the_last_look_may_refuse_and_comes_when_the_bytes_are_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let commit = |refused: bool| {
            let output = Output::reserve(&path, true).unwrap();
            output.commit_unless(b"new", &mut || {
                assert!(fs::read(&path).is_ok_and(|bytes| bytes != b"new"), "the target is as it was");
                if refused { bail!("no") } else { Ok(()) }
            })
        };
        fs::write(&path, b"old").unwrap();
        assert!(commit(true).is_err());
        assert_eq!((fs::read(&path).unwrap(), entries(folder.path()).len()), (b"old".to_vec(), 1));
        commit(false).unwrap();
        assert_eq!((fs::read(&path).unwrap(), entries(folder.path()).len()), (b"new".to_vec(), 1));
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_keeps_its_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        Output::reserve(&path, true).unwrap().commit(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn two_reservations_in_one_process_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let first = Output::reserve(&folder.path().join("a.png"), false).unwrap();
        let second = Output::reserve(&folder.path().join("b.png"), false).unwrap();
        first.commit(b"first").unwrap();
        second.commit(b"second").unwrap();
        assert_eq!(fs::read(folder.path().join("a.png")).unwrap(), b"first");
        assert_eq!(fs::read(folder.path().join("b.png")).unwrap(), b"second");
    }

    #[test]
    fn existing_file_needs_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs::write(&path, b"old").unwrap();
        let message = refusal(&path, false);
        assert!(message.contains("a.png") && message.contains("--force"), "{message}");
        Output::reserve(&path, true).unwrap().commit(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(entries(folder.path()), ["a.png"]);
    }

    #[test]
    fn file_that_appeared_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let output = Output::reserve(&path, false).unwrap();
        fs::write(&path, b"someone else's").unwrap();
        let message = format!("{:#}", output.commit(b"new").unwrap_err());
        assert!(message.contains("--force"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"someone else's");
        assert_eq!(entries(folder.path()), ["a.png"]);
    }

    #[test]
    fn failed_commit_keeps_the_target_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let output = Output::reserve(&path, true).unwrap();
        fs::create_dir(&path).unwrap();
        output.commit(b"new").unwrap_err();
        assert!(path.is_dir());
        assert_eq!(entries(folder.path()), ["a.png"]);
    }

    #[test]
    fn unusable_paths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let missing = refusal(&folder.path().join("absent/a.png"), false);
        assert!(missing.contains("absent") && missing.contains("create it"), "{missing}");
        let is_folder = refusal(folder.path(), true);
        assert!(is_folder.contains("is a folder"), "{is_folder}");
        fs::write(folder.path().join("file"), b"").unwrap();
        assert!(!refusal(&folder.path().join("file/a.png"), false).is_empty());
        assert!(refusal(Path::new(""), false).contains("names no file"));
        assert!(!refusal(&folder.path().join("x".repeat(300)), false).is_empty());
        assert_eq!(entries(folder.path()), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn force_replaces_the_file_behind_a_link_and_never_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.png"), folder.path().join("link.png"));
        fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Output::reserve(&link, true).unwrap().commit(b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(refusal(Path::new("/dev/null"), true).contains("device"));
    }

    /// Permission bits do not bind root, so a folder that no user can write to is used.
    #[test]
    fn unwritable_folder_is_refused() {
        if !Path::new("/proc/self").is_dir() {
            eprintln!("skipped: no /proc here");
            return;
        }
        let message = refusal(Path::new("/proc/a.png"), false);
        assert!(message.contains("/proc") && message.contains("choose another folder"), "{message}");
    }

    #[test]
    fn full_disk_is_an_error() {
        let Ok(mut full) = File::options().write(true).open("/dev/full") else {
            eprintln!("skipped: no /dev/full here");
            return;
        };
        assert_eq!(write_durably(&mut full, b"picture").unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
