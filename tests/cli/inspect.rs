//! What `inspect` tells of models and plans.

use super::support::*;

fn inspected(args: &[&str]) -> Answer {
    let answer = Place::new().run(&[&["inspect"], args].concat());
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{args:?}");
    answer
}

#[test]
fn a_model_folder_is_described() {
    let text =
        inspected(&["-m", model().to_str().unwrap(), "--tensors", "--size", "64x48", "--size-level", "64", "--precision", "f32"])
            .stdout;
    for words in ["Step1X-Edit v1.1", DIT, VAE, TEXT, "transformer: img_in.weight bf16[256, 64]", "plan of an edit at 64x48"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
}

#[test]
fn the_released_size_is_known_without_weights() {
    let text = inspected(&["--preset", "full"]).stdout;
    assert!(text.contains(" 12427800384 parameters"), "{text}");
    let v1_0 = inspected(&["--preset", "full", "--version", "v1.0"]).stdout;
    assert!(v1_0.starts_with("Step1X-Edit v1.0\n") && !v1_0.contains(" 12427800384 "), "{v1_0}");
}

#[test]
fn json_has_components_and_plan() {
    let json = inspected(&["--preset", "full", "--json"]).json();
    assert_eq!(json["components"][0]["parameters"], 12_427_800_384u64);
    assert!(json["plan"]["arena_bytes"].as_u64().unwrap() > 1 << 30, "{json}");
    assert_eq!(json["plan"]["stages"].as_array().unwrap().len(), 6);
    assert_eq!(json["plan"]["itinerary"], "vae_encode, vision, text, conditioning, step x28, vae_decode");
}

#[test]
fn kernels_are_chosen_in_bf16_alone() {
    let path = model().to_str().unwrap();
    let text = inspected(&["-m", path]).stdout;
    assert!(text.contains("bf16 activations") && text.contains("cublaslt"), "{text}");
    let text = inspected(&["-m", path, "--precision", "f32"]).stdout;
    assert!(text.contains("f32 activations") && !text.contains("cublaslt"), "{text}");
    let json = inspected(&["-m", path, "--json", "--precision", "f32"]).json();
    assert_eq!(json["files"].as_array().unwrap().len(), 3);
    assert_eq!(json["plan"]["precision"], "f32");
}

#[test]
fn the_residency_follows_the_memory_that_is_allowed() {
    let budgets: [(&[&str], &str); 3] =
        [(&[], "resident"), (&["--max-vram", "30GB"], "streamed"), (&["--max_vram=6GB"], "streamed")];
    for (flags, residency) in budgets {
        let all = [&["--preset", "full"], flags].concat();
        let text = inspected(&all).stdout;
        assert!(text.contains(&format!("\nweights are {residency}")), "{text}");
        let plan = &inspected(&[&all[..], &["--json"]].concat()).json()["plan"];
        let device = &plan["device"];
        assert_eq!(device["residency"], residency);
        let stages = device["stages"].as_array().unwrap();
        let sum = |key: &str| stages.iter().map(|stage| stage[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!(stages.len(), 6);
        assert_eq!(sum("kept_bytes") + sum("streamed_bytes"), plan["weight_bytes"].as_u64().unwrap(), "{device}");
        assert_eq!(sum("streamed_bytes") == 0, residency == "resident");
    }
    let text = inspected(&["--preset", "full", "--max-vram", "6GB"]).stdout;
    for words in [
        "on a device 6.00 GB",
        " stay, ",
        "come from the host",
        "stalls with 55, 40, 25 GB/s of link",
        "an edit after others takes",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let large = inspected(&["--preset", "full", "--size", "2048x2048", "--size-level", "2048", "--max-vram", "12GB"]).stdout;
    assert!(large.contains("2048x2048") && large.contains("on a device 12.00 GB"), "{large}");
    let text = inspected(&["--preset", "tiny", "--precision", "f32"]).stdout;
    assert!(!text.contains("on a device"), "{text}");
}

#[test]
fn memory_that_cannot_do_is_refused() {
    let place = Place::new();
    let with = |value: &str| place.run(&["inspect", "--preset", "full", "--max-vram", value]);
    with("2GB").refused(4, &["at least 2.9", "--max-vram allows 2.00 GB", "use a smaller --size-level"]);
    for value in ["22G", "much", "0", "-1"] {
        with(value).refused(2, &["--max-vram"]);
    }
    for precision in ["f32", "fp8"] {
        let limited = ["inspect", "--preset", "tiny", "--precision", precision, "--max-vram", "1GB"];
        place.run(&limited).refused(2, &["--max-vram", "GPU", &format!("--precision {precision}")]);
    }
}

/// All blocks of a stack are alike but for their number and their columns of the modulation; the last single block,
/// which computes fewer rows, stands alone.
#[test]
fn the_graph_shows_equal_blocks_once() {
    let text = inspected(&["--preset", "full", "--graph"]).stdout;
    let (_, step) = text.split_once("\nstage step: ").unwrap();
    for fold in ["double_blocks.1 to 18: as double_blocks.0", "single_blocks.1 to 36: as single_blocks.0"] {
        assert!(step.contains(fold), "no {fold:?} in {step}");
    }
    assert!(text.contains("model.layers.1 to 27: as model.layers.0"), "{text}");
    assert!(!step.contains("single_blocks.5.") && step.contains("single_blocks.37.linear2"), "{step}");
}

/// The digests of a model's files: of a cache as the hub's client makes it, and of a list.
#[test]
#[cfg(unix)]
fn files_are_compared_with_their_published_digests() {
    use std::fs;
    use std::os::unix::fs::symlink;

    use sha2::{Digest, Sha256};

    let place = Place::new();
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let hub = place.path("hub");
    let repositories =
        [("models--stepfun-ai--Step1X-Edit", ""), ("models--Qwen--Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B-Instruct/")];
    let mut damage = None;
    for file in MODEL_FILES {
        let (repository, name) = match file.strip_prefix(repositories[1].1) {
            Some(name) => (repositories[1].0, name),
            None => (repositories[0].0, file),
        };
        let (blobs, snapshot) = (hub.join(repository).join("blobs"), hub.join(repository).join("snapshots/abc"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        let bytes = fs::read(model().join(file)).unwrap();
        let blob = blobs.join(digest(&bytes));
        fs::write(&blob, bytes).unwrap();
        symlink(format!("../../blobs/{}", digest(&fs::read(&blob).unwrap())), snapshot.join(name)).unwrap();
        damage = if file == TEXT { Some(blob) } else { damage };
    }
    let cache = hub.join(repositories[0].0);
    let inspect = |path: &std::path::Path, more: &[&str]| {
        place.run(&[&["inspect", "-m", path.to_str().unwrap(), "--verify", "--precision", "f32"], more].concat())
    };
    let answer = inspect(&cache, &[]);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{}", answer.stdout);
    assert_eq!(answer.stdout.matches("\n  ok  ").count(), 6, "{}", answer.stdout);
    assert!(answer.stdout.contains("the hub's cache") && answer.stdout.contains("plan of an edit"), "{}", answer.stdout);

    // One bit of a weight, which nothing else would notice.
    let blob = damage.unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let answer = inspect(&cache, &[]);
    assert_eq!(answer.code, Some(3));
    assert!(
        answer.stderr.contains("model.safetensors: the file is not as it was published; fetch it again"),
        "{}",
        answer.stderr
    );
    assert!(answer.stdout.contains("\n  damaged  ") && answer.stdout.matches("\n  ok  ").count() == 5, "{}", answer.stdout);
    let json = inspect(&cache, &["--json"]).json();
    let verdicts = json["verified"].as_array().unwrap().iter().filter(|file| file["verdict"] == "damaged");
    assert_eq!(verdicts.count(), 1, "{json}");

    let dir = place.linked_model("model", &[]);
    let answer = inspect(&dir, &[]);
    assert_eq!(answer.code, Some(0));
    assert!(
        answer.stdout.contains("no digest is known") && answer.stdout.matches("not checked").count() == 6,
        "{}",
        answer.stdout
    );
    let line = |file: &str, bytes: &[u8]| format!("{}  {file}\n", digest(bytes));
    place.write("model/SHA256SUMS", line(DIT, &fs::read(model().join(DIT)).unwrap()) + &line(VAE, b"another"));
    let json = inspect(&dir, &["--json"]).json();
    let verdicts: Vec<_> = json["verified"].as_array().unwrap().iter().map(|file| file["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts[..3], ["ok", "damaged", "not checked"]);
    place.run(&["inspect", "--preset", "tiny", "--verify"]).refused(2, &["--verify", "--preset"]);
}

#[test]
fn faults_are_refused() {
    let place = Place::new();
    place.run(&["inspect"]).refused(2, &["--model", "--preset"]);
    place.run(&["inspect", "-m", "absent"]).refused(3, &["absent", "no such folder"]);
    place.run(&["inspect", "-m", "a", "--preset", "tiny"]).refused(2, &["--model", "--preset"]);
    place.run(&["inspect", "--preset", "tiny", "--size", "30000x1"]).refused(2, &["30000x1", "times the shorter"]);
}
