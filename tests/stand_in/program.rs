//! The program beside the stand-in: exit codes, notes, and what a stop takes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::Program;

#[test]
fn memory_that_runs_out_after_the_plan_ends_with_4() {
    let Some(program) = Program::new() else { return };
    for (fault, words) in [
        ("cuMemAlloc_v2 2", "are free"),
        ("cuMemAlloc_v2 2 1", "are free"),
        ("cuModuleLoadData 2", "cannot load a kernel"),
        ("cuStreamCreate 2", "cannot open a stream"),
        ("cuEventCreate 2", "cannot make an event"),
        ("cuMemHostAlloc 2", "does not lock"),
        ("cuGraphInstantiateWithFlags 2", "cannot instantiate a graph"),
        ("cublasLtCreate 3", "cuBLASLt cannot start"),
        ("cublasLtMatmulAlgoGetHeuristic 3", "cannot suggest an algorithm"),
        ("cublasLtMatmul 3", "cannot run a product"),
        ("cuDevicePrimaryCtxRetain 2", "use --device cpu"),
        ("cuDevicePrimaryCtxRetain 46", "use --device cpu"),
    ] {
        let answer = program.run(&["--device", "cuda"], &[("STAND_IN_FAULT", fault)]);
        assert_eq!(answer.code, Some(4), "{fault}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{fault}: {}", answer.stderr);
        assert!(!answer.stderr.contains("panicked") && !answer.stderr.contains('{'), "{fault}: {}", answer.stderr);
        assert!(!program.made(), "{fault}");
    }
    let answer = program.run(&["--device", "cuda"], &[("STAND_IN_FAULT", "cuLaunchKernel 700 9")]);
    assert_eq!((answer.code, program.made()), (Some(1), false), "{}", answer.stderr);
}

#[test]
fn the_reason_of_a_fall_to_the_cpu_is_told() {
    let Some(program) = Program::new() else { return };
    let edit = |fault| program.run(&["--size-level", "64", "-q"], &[("STAND_IN_FAULT", fault)]);
    let answer = edit("cuDevicePrimaryCtxRetain 46");
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    assert!(answer.stderr.contains("on the CPU: the device cannot be opened"), "{}", answer.stderr);
}

#[test]
fn a_cache_that_others_can_write_is_named_once_and_left_alone() {
    let Some(program) = Program::new() else { return };
    let cache = program.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    let answer = program.run(&["--device", "cuda"], &[]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let notes: Vec<&str> = answer.stderr.lines().filter(|line| line.contains("cache")).collect();
    assert!(notes.len() == 1 && notes[0].contains("(mode 777)") && notes[0].contains("STEP1X_CACHE"), "{}", answer.stderr);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);

    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    let answer = program.run(&["--device", "cuda"], &[]);
    assert!(answer.code == Some(0) && !answer.stderr.contains("cache"), "{}", answer.stderr);
    let names: Vec<String> =
        fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() > 10 && names.iter().all(|name| name.ends_with(".cubin")), "kernels alone: {names:?}");
    // With these no kernel is compiled.
    let answer = program.run(&["--device", "cuda"], &[("STAND_IN_FAULT", "nvrtcCompileProgram 6")]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
}

#[test]
fn one_signal_stops_an_edit_whose_device_does_not_end() {
    let Some(program) = Program::new() else { return };
    let mut command = program.edit(&["--device", "cuda"], &[("STAND_IN_FAULT", "cuEventQuery|cuStreamQuery 600 1")]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("on cuda:0") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    std::thread::sleep(Duration::from_millis(500)); // by now it waits for the first stage
    let asked = Instant::now();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    stderr.read_to_string(&mut line).unwrap();
    let code = child.wait().unwrap().code();
    assert!(code == Some(130) && line.contains("nothing was written") && !program.made(), "{code:?}: {line}");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}
