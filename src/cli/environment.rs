//! Where the environment says that the device's libraries and the kernels' sources lie, and what is compiled is kept.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::values;
use crate::commands::pull::{HubEnvironment, Token};
use crate::cuda::Setup;
use crate::pipeline::Caches;
use crate::tensor::Component;

/// Folders of libraries: those of STEP1X_CUDA_LIB, then those of Python environments (VIRTUAL_ENV, CONDA_PREFIX, that of
/// `python3`), then those of installed toolkits. The cache: STEP1X_CACHE, or `step1x-edit` in the user's cache folder.
/// The kernels' sources: STEP1X_KERNELS, else the embedded ones. The profiler: NVTX_INJECTION64_PATH, which profilers set.
pub fn setup() -> Setup {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let profiler = variable("NVTX_INJECTION64_PATH").map(PathBuf::from);
    let kernels = variable("STEP1X_KERNELS").map(PathBuf::from);
    Setup { libraries: libraries(&variable, Path::new("/usr/local")), cache: cache(&variable), kernels, profiler }
}

/// How many threads the CPU gets unless a flag says so: what RAYON_NUM_THREADS says within bounds, else one for each core; and
/// what the user should know of that.
pub fn threads() -> (usize, Option<String>) {
    threads_of(env::var("RAYON_NUM_THREADS").ok().as_deref(), values::cores(), values::most_threads())
}

fn threads_of(wanted: Option<&str>, cores: usize, most: usize) -> (usize, Option<String>) {
    match wanted.map(|text| (text, text.parse::<usize>())) {
        None | Some((_, Ok(0))) | Some(("", _)) => (cores, None),
        Some((_, Ok(number))) if number <= most => (number, None),
        Some((text, _)) => {
            let fault = format!("RAYON_NUM_THREADS is {text:?}, which is no number from 1 to {most}; {cores} threads are used");
            (cores, Some(fault))
        }
    }
}

/// What `-m`, `--vae` or `--text-encoder` names: a path, else a model by its name in the cache of a hub, or a part of it.
///
/// # Errors
/// A model error: neither is there.
pub(super) fn located(named: &Path, what: Component) -> Result<PathBuf> {
    Ok(caches(&|name| env::var_os(name).filter(|value| !value.is_empty())).locate(named, what)?)
}

/// Keys of `serve`, separated by commas.
pub(super) fn api_keys() -> Option<String> {
    env::var("STEP1X_API_KEY").ok().filter(|keys| !keys.is_empty())
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// `local`: the folder that toolkits install themselves in.
fn libraries(variable: Variable, local: &Path) -> Vec<PathBuf> {
    let list = |name| variable(name).map(|value| env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(|name| Some(PathBuf::from(variable(name)?)));
    let mut prefixes: Vec<PathBuf> = environments.collect();
    if let Some(python) = list("PATH").into_iter().map(|folder| folder.join("python3")).find(|file| file.is_file()) {
        // An environment's python3 is a link to the one that it was made from.
        let prefix_of = |file: &Path| Some(file.parent()?.parent()?.to_path_buf());
        prefixes
            .extend([Some(python.clone()), fs::canonicalize(python).ok()].into_iter().flatten().filter_map(|p| prefix_of(&p)));
    }
    prefixes.push(local.to_path_buf());

    let mut folders: Vec<PathBuf> = list("STEP1X_CUDA_LIB").into_iter().filter(|folder| !folder.as_os_str().is_empty()).collect();
    for library in prefixes.iter().flat_map(|prefix| children(&prefix.join("lib"), "python3")) {
        let packages = ["site-packages", "dist-packages"].map(|packages| library.join(packages).join("nvidia"));
        folders.extend(packages.iter().flat_map(|nvidia| children(nvidia, "")).map(|package| package.join("lib")));
    }
    folders.extend(children(local, "cuda").into_iter().map(|toolkit| toolkit.join("lib64")));
    let mut seen = HashSet::new();
    folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    folders
}

/// What a folder holds whose name begins so, by name; nothing if there is no such folder.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn cache(variable: Variable) -> Option<PathBuf> {
    let below = |name, path: &str| variable(name).map(|folder| PathBuf::from(folder).join(path));
    let own = variable("STEP1X_CACHE").map(PathBuf::from);
    own.or_else(|| below("XDG_CACHE_HOME", "step1x-edit")).or_else(|| below("HOME", ".cache/step1x-edit"))
}

/// Where the hubs' own tools keep what they download.
fn caches(variable: Variable) -> Caches {
    let at = |name| variable(name).map(PathBuf::from);
    let below = |name, path: &str| at(name).map(|folder| folder.join(path));
    let hugging_face = at("HF_HUB_CACHE")
        .or_else(|| at("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| below("HF_HOME", "hub"))
        .or_else(|| below("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| below("HOME", ".cache/huggingface/hub"));
    let scope = modelscope(variable);
    let scope = scope
        .iter()
        .flat_map(|folder| ["hub/models", "hub", "models"].map(|path| folder.join(path)).into_iter().chain([folder.clone()]));
    Caches { hugging_face, modelscope: scope.collect() }
}

/// Where ModelScope's tools keep everything.
fn modelscope(variable: Variable) -> Option<PathBuf> {
    let at = |name| variable(name).map(PathBuf::from);
    at("MODELSCOPE_CACHE").or_else(|| at("HOME").map(|home| home.join(".cache/modelscope")))
}

/// What is said of hubs and of the way to them, in the variables that their own tools read.
pub(super) fn hubs() -> HubEnvironment {
    hubs_of(&|name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn hubs_of(variable: Variable) -> HubEnvironment {
    let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
    let first = |names: &[&str]| names.iter().find_map(|name| text(name));
    let is_yes = |text: String| ["1", "true", "yes", "on"].contains(&text.to_ascii_lowercase().as_str());
    let address = |text: String| match text.contains("://") {
        true => text.trim_end_matches('/').to_string(),
        false => format!("https://{}", text.trim_end_matches('/')),
    };
    let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    HubEnvironment {
        offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| text(name).is_some_and(is_yes)),
        hugging_face: address(text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into())),
        hugging_face_cache: caches(variable).hugging_face,
        token: token(variable),
        modelscope: address(text("MODELSCOPE_DOMAIN").unwrap_or_else(|| "https://www.modelscope.cn".into())),
        modelscope_cache: modelscope(variable).map(|folder| folder.join("models")),
        https_proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
        http_proxy: first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
        no_proxy: first(&["NO_PROXY", "no_proxy"]),
        certificates: variable("SSL_CERT_FILE").map(PathBuf::from),
        patience: Duration::from_secs(seconds.unwrap_or(PATIENCE)),
    }
}

/// Seconds that a server may say nothing.
const PATIENCE: u64 = 30;

/// The hub's token: that of HF_TOKEN, else that of the file where `hf auth login` puts it.
fn token(variable: Variable) -> Option<Token> {
    let clean = |text: String| Some(text.trim().to_string()).filter(|text| !text.is_empty());
    if let Some(secret) = variable("HF_TOKEN").and_then(|value| value.into_string().ok()).and_then(clean) {
        return Some(Token { secret, found: "HF_TOKEN".into() });
    }
    let at = |name| variable(name).map(PathBuf::from);
    let file = at("HF_TOKEN_PATH")
        .or_else(|| at("HF_HOME").map(|home| home.join("token")))
        .or_else(|| at("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/token")))
        .or_else(|| at("HOME").map(|home| home.join(".cache/huggingface/token")))?;
    let secret = fs::read_to_string(&file).ok().and_then(clean)?;
    Some(Token { secret, found: file.display().to_string() })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn libraries_are_found_in_the_order_of_trust() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let expected = [
            "own",
            "venv/lib/python3.12/site-packages/nvidia/cublas/lib",
            "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib",
            "conda/lib/python3.11/site-packages/nvidia/cu13/lib",
            "system/lib/python3/dist-packages/nvidia/cublas/lib",
            "local/cuda/lib64",
            "local/cuda-13.0/lib64",
        ];
        expected.iter().for_each(|path| fs::create_dir_all(at(path)).unwrap());
        for empty in ["venv/lib/python3.12/site-packages/numpy/lib", "local/lib/other", "first", "system/bin"] {
            fs::create_dir_all(at(empty)).unwrap();
        }
        fs::write(at("system/bin/python3"), "").unwrap();
        let join = |paths: &[&str]| env::join_paths(paths.iter().map(|path| at(path))).unwrap();
        let variables = HashMap::from([
            ("STEP1X_CUDA_LIB", join(&["own", "gone"])),
            ("VIRTUAL_ENV", at("venv").into()),
            ("CONDA_PREFIX", at("conda").into()),
            ("PATH", join(&["first", "system/bin"])),
        ]);
        let found = libraries(&|name| variables.get(name).cloned(), &at("local"));
        assert_eq!(found, expected.map(at));
        assert_eq!(libraries(&|_| None, &at("nowhere")), Vec::<PathBuf>::new());
    }

    #[test]
    fn threads_are_bounded_whatever_the_environment_says() {
        for (wanted, threads) in [(None, 8), (Some(""), 8), (Some("0"), 8), (Some("1"), 1), (Some("64"), 64)] {
            assert_eq!(threads_of(wanted, 8, 64), (threads, None), "{wanted:?}");
        }
        for wanted in ["65", "100000", "99999999999999999999", "-1", "many", "2.5"] {
            let (threads, note) = threads_of(Some(wanted), 8, 64);
            let note = note.unwrap();
            assert!(threads == 8 && note.contains(wanted) && note.contains("1 to 64") && note.contains("8 threads"), "{note}");
        }
    }

    #[test]
    fn the_cache_lies_where_the_user_says() {
        let with = |variables: &[(&'static str, &str)]| {
            let known: HashMap<&str, OsString> = variables.iter().map(|(name, value)| (*name, value.into())).collect();
            cache(&|name| known.get(name).cloned())
        };
        let home = ("HOME", "/home/me");
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[home]), Some("/home/me/.cache/step1x-edit".into()));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/step1x-edit".into()));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/x"), ("STEP1X_CACHE", "/own")]), Some("/own".into()));
    }

    #[test]
    fn hubs_are_asked_as_their_own_tools_ask_them() {
        let dir = tempfile::tempdir().unwrap();
        let with = |set: &[(&str, &str)]| {
            let set: HashMap<String, OsString> = set.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
            hubs_of(&|name| set.get(name).cloned())
        };
        let bare = with(&[("HOME", "/e")]);
        assert_eq!(
            (bare.hugging_face.as_str(), bare.modelscope.as_str()),
            ("https://huggingface.co", "https://www.modelscope.cn")
        );
        assert_eq!(bare.modelscope_cache.as_deref(), Some(Path::new("/e/.cache/modelscope/models")));
        assert!(bare.token.is_none() && bare.offline.is_none() && bare.patience == Duration::from_secs(30));
        let other =
            with(&[("HF_ENDPOINT", "https://a.example/"), ("MODELSCOPE_DOMAIN", "b.example"), ("https_proxy", "http://p:1")]);
        assert_eq!((other.hugging_face.as_str(), other.modelscope.as_str()), ("https://a.example", "https://b.example"));
        assert_eq!((other.https_proxy.as_deref(), other.http_proxy), (Some("http://p:1"), None));
        for (value, offline) in [("1", true), ("ON", true), ("True", true), ("yes", true), ("0", false), ("no", false)] {
            assert_eq!(with(&[("HF_HUB_OFFLINE", value)]).offline.is_some(), offline, "{value}");
        }

        fs::create_dir_all(dir.path().join(".cache/huggingface")).unwrap();
        fs::write(dir.path().join(".cache/huggingface/token"), " of_the_home\n").unwrap();
        fs::write(dir.path().join("token"), "of_hf_home").unwrap();
        let home = ("HOME", dir.path().to_str().unwrap());
        let hf_home = ("HF_HOME", home.1);
        for (set, secret) in [
            (&[home][..], Some("of_the_home")),
            (&[home, hf_home], Some("of_hf_home")),
            (&[home, hf_home, ("HF_TOKEN", " own ")], Some("own")),
            (&[home, ("HF_TOKEN_PATH", "/gone")], None),
        ] {
            let token = with(set).token;
            assert_eq!(token.as_ref().map(|token| token.secret.as_str()), secret, "{set:?}");
            assert!(!secret.is_some_and(|secret| format!("{token:?}").contains(secret)), "a token is never shown");
        }
    }

    #[test]
    fn caches_lie_where_their_tools_put_them() {
        let with = |set: &[(&str, &str)]| {
            let set: HashMap<String, OsString> = set.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
            caches(&|name| set.get(name).cloned())
        };
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/e", "/e/.cache/huggingface/hub"),
        ];
        for first in 0..all.len() {
            let set: Vec<_> = all[first..].iter().map(|(name, value, _)| (*name, *value)).collect();
            assert_eq!(with(&set).hugging_face, Some(PathBuf::from(all[first].2)));
        }
        assert!(with(&[]).hugging_face.is_none() && with(&[]).modelscope.is_empty());
        let scope = with(&[("HOME", "/e")]).modelscope;
        assert_eq!(scope[0], Path::new("/e/.cache/modelscope/hub/models"));
        assert!(with(&[("HOME", "/e"), ("MODELSCOPE_CACHE", "/m")]).modelscope.contains(&"/m/models".into()));
    }
}
