//! Models by the names that hubs give them, in the caches that download tools fill; and which files of a repository a model of
//! such a name is read from. Nothing is downloaded here.
//!
//! A Hugging Face cache has `models--<org>--<name>/{refs,snapshots}`, a ModelScope cache `<org>/<name>`, with three underscores for
//! each dot, or, of its newer client, `<org>--<name>/snapshots`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::json::read;
use super::layout::{DIT_V1_0, DIT_V1_1, Listed, REVISION_BYTES, is_plain_name, names_in, read_of, snapshot};
use super::words::{listed, shown};
use super::{ModelError, Result};
use crate::tensor::Component;

/// Most characters of a name, with its revision.
const NAME_CHARACTERS: usize = 200;

const OFFICIAL: &str = "stepfun-ai/Step1X-Edit";
/// The repository of the text encoder, which that of the authors does not hold.
pub const TEXT_ENCODER_REPOSITORY: &str = "Qwen/Qwen2.5-VL-7B-Instruct";
/// How the repositories of version 1.2 begin, which are told but not run.
const NEXT: &str = "stepfun-ai/Step1X-Edit-v1p2";

/// A released model: its short name, its repository, and its transformer where the repository has several.
const RELEASED: [(&str, &str, Option<&str>); 5] = [
    ("v1.0", OFFICIAL, Some(DIT_V1_0)),
    ("v1.1", OFFICIAL, Some(DIT_V1_1)),
    ("v1.1-diffusers", "stepfun-ai/Step1X-Edit-v1p1-diffusers", None),
    ("v1p2-preview", "stepfun-ai/Step1X-Edit-v1p2-preview", None),
    ("v1p2", "stepfun-ai/Step1X-Edit-v1p2", None),
];

/// Where the caches of hubs lie.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    /// The folder of `models--…` folders.
    pub hugging_face: Option<PathBuf>,
    /// Folders that may hold `<org>/<name>`.
    pub modelscope: Vec<PathBuf>,
}

/// A name as people write it: `org/name`, `org/name@revision`, or a short one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HubName<'a> {
    /// `org/name`.
    pub repository: &'a str,
    /// A branch, a tag or a commit; none: the main one.
    pub revision: Option<&'a str>,
    /// The transformer that a short name means.
    dit: Option<&'static str>,
}

/// What a model is read from.
#[derive(Debug, PartialEq, Eq)]
pub struct HubFiles {
    /// Paths in its repository.
    pub names: Vec<String>,
    /// Whether it needs the text encoder of another repository.
    pub needs_text_encoder: bool,
}

impl<'a> HubName<'a> {
    /// The name that a text is; none: it is a path, or nothing.
    pub fn parse(text: &'a str) -> Option<HubName<'a>> {
        let (name, revision) = text.split_once('@').map_or((text, None), |(name, revision)| (name, Some(revision)));
        let plain = |part: &str| {
            let known = part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            known && is_plain_name(part) && !part.starts_with('.')
        };
        let sound = text.len() <= NAME_CHARACTERS && revision.is_none_or(|revision| revision.split('/').all(plain));
        let short = RELEASED.iter().find(|(short, ..)| *short == name);
        let (repository, dit) = match (short, name.split_once('/')) {
            (Some((_, repository, dit)), _) => (*repository, *dit),
            (None, Some((org, rest))) if plain(org) && plain(rest) => (name, None),
            _ => return None,
        };
        sound.then_some(HubName { repository, revision, dit })
    }

    /// Why the model is not read, if that is known from its name.
    pub fn unread(&self) -> Option<&'static str> {
        let next = self.repository.starts_with(NEXT);
        next.then_some("version 1.2 is not supported yet; v1.1 is the newest that is")
    }

    /// Which of the files of its repository the model is read from.
    ///
    /// # Errors
    /// None is read, or there are several models.
    pub fn files(&self, names: &BTreeSet<&str>) -> Result<HubFiles> {
        let fault = |what: String| Err(ModelError::new(format!("{}: {what}", self.repository)));
        match (read_of(names, self.dit), self.dit) {
            (Listed::Whole(names), _) => Ok(HubFiles { names, needs_text_encoder: false }),
            (Listed::WithoutTextEncoder(names), _) => Ok(HubFiles { names, needs_text_encoder: true }),
            (Listed::Several(several), _) if self.repository == OFFICIAL => {
                fault(format!("it holds {} models, {}; name one of them: v1.1 or v1.0", several.len(), several.join(" and ")))
            }
            (Listed::Several(several), _) => fault(format!(
                "it holds several models; --all fetches all of them, and -m takes the path of one{}",
                listed("they are", &several)
            )),
            (Listed::None, Some(dit)) => fault(format!("it lacks {dit}")),
            (Listed::None, None) => fault(format!(
                "it holds no model that is read (docs/models.md); --all fetches its files all the same{}",
                listed("it has", &names.iter().map(|name| shown(name)).collect::<Vec<_>>())
            )),
        }
    }

    /// How what is meant by this name, written so, is got, and how much that is.
    fn remedy(&self, written: &str, what: Component) -> String {
        if what != Component::Dit {
            let whole = RELEASED.iter().rfind(|(_, repository, _)| *repository == self.repository);
            return match (whole.filter(|_| self.unread().is_none()), what) {
                (Some((short, ..)), _) => format!("`step1x-edit pull {short}` gets it with its model: 42 GB, licence Apache-2.0"),
                (None, _) if self.repository == TEXT_ENCODER_REPOSITORY => {
                    format!("`step1x-edit pull {TEXT_ENCODER_REPOSITORY}` gets it: 17 GB, licence Apache-2.0")
                }
                (None, Component::Qwen) => format!("if it is one on Hugging Face, `step1x-edit pull {written}` gets it"),
                (None, _) => format!("if it is one on Hugging Face, `step1x-edit pull {written} --all` gets its repository"),
            };
        }
        if let Some(why) = self.unread() {
            return why.into();
        }
        let released = RELEASED.iter().any(|(_, repository, dit)| *repository == self.repository && *dit == self.dit);
        match released {
            true => format!("`step1x-edit pull {written}` gets it: 42 GB, licence Apache-2.0"),
            false if self.repository == OFFICIAL => {
                "v1.1 and v1.0 are its two models; `step1x-edit pull v1.1` gets the newer one: 42 GB, licence Apache-2.0".into()
            }
            false => format!("if it is a model on Hugging Face, `step1x-edit pull {written}` gets it"),
        }
    }
}

impl Caches {
    /// The folder or file that `named` means: what there is at this path, else the place of the model of this name in a cache. What is no
    /// name either comes back as it is. `what` is wanted of it: the whole model, by its transformer, or one part, whose folder it may also
    /// be. A short name of the authors' repository means, for the text encoder, that of Qwen's.
    ///
    /// # Errors
    /// No cache has the model, or not this revision of it, or not its transformer.
    pub fn locate(&self, named: &Path, what: Component) -> Result<PathBuf> {
        let name = named.to_str().filter(|_| !named.exists()).and_then(HubName::parse);
        let Some(mut name) = name else {
            return Ok(named.to_path_buf());
        };
        if what != Component::Dit {
            name.dit = None;
        }
        if what == Component::Qwen && name.repository == OFFICIAL && name.revision.is_none() {
            name.repository = TEXT_ENCODER_REPOSITORY;
        }
        let mut seen = Vec::new();
        for place in self.places(&name) {
            match &place {
                Place::Snapshots(dir) if dir.is_dir() => match revision(dir, name.revision)? {
                    Some(snapshot) => match with_dit(snapshot, &name) {
                        Ok(place) => return Ok(place),
                        Err(lack) => seen.push(lack),
                    },
                    None => seen.push(format!("{}: it has {}", dir.display(), revisions(dir))),
                },
                Place::Plain(dir) if dir.is_dir() && name.revision.is_none() => match with_dit(dir.clone(), &name) {
                    Ok(place) => return Ok(place),
                    Err(lack) => seen.push(lack),
                },
                Place::Plain(dir) if dir.is_dir() => seen.push(format!("{}: it has no revisions", dir.display())),
                Place::Snapshots(dir) | Place::Plain(dir) => seen.push(dir.display().to_string()),
            }
        }
        let path = std::path::absolute(named).unwrap_or_else(|_| named.to_path_buf());
        seen.insert(0, path.display().to_string());
        let meaning = match named.to_str() == Some(name.repository) {
            true => String::new(),
            false => format!(", which is {}{}", name.repository, name.revision.map_or(String::new(), |r| format!(" at {r}"))),
        };
        let looked = listed("looked for", &seen);
        Err(ModelError::new(format!(
            "{}{meaning}: there is no such folder or file, and no cache of a hub has it{looked}\n{}",
            named.display(),
            name.remedy(named.to_str().unwrap_or_default(), what)
        )))
    }

    /// Where the model may be.
    fn places(&self, name: &HubName) -> Vec<Place> {
        let (org, rest) = name.repository.split_once('/').unwrap_or_default();
        let hugging_face = self.hugging_face.iter().map(|hub| Place::Snapshots(hub.join(format!("models--{org}--{rest}"))));
        let mut folders = vec![rest.to_string(), rest.replace('.', "___")];
        folders.dedup();
        let modelscope = self.modelscope.iter().flat_map(|root| {
            let plain = folders.iter().map(|folder| Place::Plain(root.join(org).join(folder)));
            plain.chain([Place::Snapshots(root.join(format!("{org}--{rest}")))])
        });
        hugging_face.chain(modelscope).collect()
    }
}

/// Where a cache would have a model.
enum Place {
    /// In `snapshots`, by revisions.
    Snapshots(PathBuf),
    /// As it is.
    Plain(PathBuf),
}

/// The snapshot of a revision: one that `refs` names or a commit; without a name that of `main`.
fn revision(dir: &Path, revision: Option<&str>) -> Result<Option<PathBuf>> {
    let Some(revision) = revision else {
        return snapshot(dir).map(Some);
    };
    let named = read(&dir.join("refs").join(revision), REVISION_BYTES).ok();
    let commit = named.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()).map_or(revision, str::trim);
    Ok(Some(dir.join("snapshots").join(commit)).filter(|snapshot| is_plain_name(commit) && snapshot.is_dir()))
}

/// What `refs` names, and the commits, in words.
fn revisions(dir: &Path) -> String {
    let names = |folder: &str| names_in(&dir.join(folder)).unwrap_or_default();
    let (mut named, commits) = (names("refs"), names("snapshots"));
    named.retain(|name| dir.join("refs").join(name).is_file());
    match [named, commits].concat() {
        none if none.is_empty() => "no revisions".into(),
        some => some.join(", "),
    }
}

/// A model's folder, or the transformer in it that is meant; else what it lacks, in words.
fn with_dit(dir: PathBuf, name: &HubName) -> std::result::Result<PathBuf, String> {
    let Some(dit) = name.dit else {
        return Ok(dir);
    };
    let file = dir.join(dit);
    if file.is_file() { Ok(file) } else { Err(format!("{}: it lacks {dit}", dir.display())) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let name = |repository, revision, dit| Some(HubName { repository, revision, dit });
        for (text, expected) in [
            ("stepfun-ai/Step1X-Edit", name(OFFICIAL, None, None)),
            ("stepfun-ai/Step1X-Edit@main", name(OFFICIAL, Some("main"), None)),
            ("a/b@refs/pr/3", name("a/b", Some("refs/pr/3"), None)),
            ("v1.1", name(OFFICIAL, None, Some(DIT_V1_1))),
            ("v1.0@abc", name(OFFICIAL, Some("abc"), Some(DIT_V1_0))),
            ("v1.1-diffusers", name("stepfun-ai/Step1X-Edit-v1p1-diffusers", None, None)),
        ] {
            assert_eq!(HubName::parse(text), expected, "{text}");
        }
        let long = format!("a/{}", "b".repeat(NAME_CHARACTERS));
        for path in
            ["", "model", "v1.3", "/a/b", "a/b/c", "./b", "../b", "a/..", "a/b@", "a/b@../c", "a b/c", "模型/a", "~/b", &long]
        {
            assert_eq!(HubName::parse(path), None, "{path}");
        }
        let longest = format!("a/{}", "b".repeat(NAME_CHARACTERS - 2));
        assert!(HubName::parse(&longest).is_some());
    }

    #[test]
    fn models_are_found_in_caches() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let official = "hub/models--stepfun-ai--Step1X-Edit";
        for commit in ["abc", "def"] {
            let snapshot = at(&format!("{official}/snapshots/{commit}"));
            fs::create_dir_all(&snapshot).unwrap();
            fs::write(snapshot.join(DIT_V1_1), "").unwrap();
        }
        fs::create_dir_all(at(&format!("{official}/refs/refs/pr"))).unwrap();
        fs::write(at(&format!("{official}/refs/main")), "def").unwrap();
        fs::write(at(&format!("{official}/refs/refs/pr/1")), "abc\n").unwrap();
        fs::write(at(&format!("{official}/refs/odd")), "../../..").unwrap();
        fs::create_dir_all(at("scope/models/org/model-1___5")).unwrap();
        for branch in ["master", "v2"] {
            fs::create_dir_all(at("scope/models/org--newer/snapshots").join(branch)).unwrap();
        }
        let caches = Caches { hugging_face: Some(at("hub")), modelscope: vec![at("scope"), at("scope/models")] };
        let found = |name: &str| caches.locate(Path::new(name), Component::Dit).unwrap();
        let snapshot = |commit: &str| at(&format!("{official}/snapshots/{commit}"));
        assert_eq!(found("stepfun-ai/Step1X-Edit"), snapshot("def"));
        assert_eq!(found("stepfun-ai/Step1X-Edit@refs/pr/1"), snapshot("abc"));
        assert_eq!(found("stepfun-ai/Step1X-Edit@abc"), snapshot("abc"));
        assert_eq!(found("v1.1"), snapshot("def").join(DIT_V1_1));
        assert_eq!(found("org/model-1.5"), at("scope/models/org/model-1___5"));
        assert_eq!(found("org/newer"), at("scope/models/org--newer/snapshots/master"));
        assert_eq!(found("org/newer@v2"), at("scope/models/org--newer/snapshots/v2"));
        assert_eq!(found("no/name/at/all"), Path::new("no/name/at/all"));

        let refused = |name: &str, words: &[&str]| {
            let fault = caches.locate(Path::new(name), Component::Dit).unwrap_err().to_string();
            words.iter().for_each(|word| assert!(fault.contains(word), "{name}: {word}: {fault}"));
        };
        refused(
            "v1.0",
            &["it lacks step1x-edit-i1258.safetensors", "`step1x-edit pull v1.0` gets it: 42 GB, licence Apache-2.0"],
        );
        refused("stepfun-ai/Step1X-Edit@no", &["it has main, odd, abc, def", "`step1x-edit pull v1.1`"]);
        refused("stepfun-ai/Step1X-Edit@odd", &["no cache of a hub has it"]);
        refused("org/model-1.5@v2", &["it has no revisions"]);
        refused(
            "org/other",
            &["hub/models--org--other", "scope/org/other", "if it is a model on Hugging Face, `step1x-edit pull org/other`"],
        );
        refused("v1p2", &["which is stepfun-ai/Step1X-Edit-v1p2", "version 1.2 is not supported yet; v1.1"]);
        refused("v1.1-diffusers", &["`step1x-edit pull v1.1-diffusers`", "42 GB"]);
        let other = at("scope/models/stepfun-ai/Step1X-Edit");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join(DIT_V1_0), "").unwrap();
        assert_eq!(found("v1.0"), other.join(DIT_V1_0));
    }

    #[test]
    fn parts_are_found_in_caches() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let caches = Caches { hugging_face: Some(at("hub")), modelscope: vec![] };
        let locate = |name: &str, what| caches.locate(Path::new(name), what);
        let refused = |name: &str, what, words: &str| {
            let fault = locate(name, what).unwrap_err().to_string();
            assert!(fault.contains(words) && fault.contains("no cache of a hub has it"), "{name}: {fault}");
        };
        let whole = "`step1x-edit pull v1.1` gets it with its model: 42 GB, licence Apache-2.0";
        for (name, what, words) in [
            ("v1.1", Component::Vae, whole),
            (OFFICIAL, Component::Vae, whole),
            ("v1.1", Component::Qwen, "`step1x-edit pull Qwen/Qwen2.5-VL-7B-Instruct` gets it: 17 GB, licence Apache-2.0"),
            (TEXT_ENCODER_REPOSITORY, Component::Qwen, "`step1x-edit pull Qwen/Qwen2.5-VL-7B-Instruct` gets it: 17 GB"),
            ("v1.1-diffusers", Component::Qwen, "`step1x-edit pull v1.1-diffusers` gets it with its model"),
            ("org/vae@x", Component::Vae, "if it is one on Hugging Face, `step1x-edit pull org/vae@x --all` gets its repository"),
            ("org/text", Component::Qwen, "if it is one on Hugging Face, `step1x-edit pull org/text` gets it"),
            ("v1p2", Component::Vae, "`step1x-edit pull v1p2 --all`"),
        ] {
            refused(name, what, words);
        }
        let snapshot = |repository: &str| at(&format!("hub/models--{}/snapshots/abc", repository.replace('/', "--")));
        for repository in [OFFICIAL, TEXT_ENCODER_REPOSITORY, "org/vae"] {
            fs::create_dir_all(snapshot(repository)).unwrap();
        }
        assert_eq!(locate("v1.1", Component::Vae).unwrap(), snapshot(OFFICIAL), "the folder, whatever transformer it lacks");
        assert_eq!(locate("v1.0", Component::Qwen).unwrap(), snapshot(TEXT_ENCODER_REPOSITORY));
        assert_eq!(locate("org/vae@abc", Component::Vae).unwrap(), snapshot("org/vae"));
        assert_eq!(locate("ae.safetensors", Component::Vae).unwrap(), Path::new("ae.safetensors"));
        refused("v1.1@abd", Component::Qwen, "it has abc");
    }
}
