//! A device that fails, or does not end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use step1x_edit::error::ResourceError;
use step1x_edit::exec::{Cuda, Executor, unwatched};

use crate::support::{ILLEGAL_ADDRESS, NOT_READY, OUT_OF_MEMORY, stand_in};

#[test]
fn a_device_that_failed_is_named_by_the_next_edit() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let gpu = stand_in.open(Arc::new(edit.weights()));
    let mut exec = Cuda::load(&gpu, edit.plan().clone()).unwrap();
    gpu.settle(&mut || Ok(())).unwrap();
    stand_in.fault("cuLaunchKernel", ILLEGAL_ADDRESS, 20, None);
    let first = edit.run(&mut exec).expect_err("a kernel fails");
    assert!(format!("{first:#}").contains("CUDA_ERROR_ILLEGAL_ADDRESS") && !first.is::<ResourceError>(), "{first:#}");
    let next = gpu.settle(&mut || Ok(())).expect_err("nothing runs any more");
    assert!(next.is::<ResourceError>() && next.to_string().contains("has failed in an earlier edit"), "{next:#}");
    drop((exec, gpu));
    stand_in.mend();
}

#[test]
fn a_device_that_does_not_end_hinders_nobody_from_stopping() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let mut exec = stand_in.executor(edit.plan(), Arc::new(edit.weights()));
    edit.run(&mut exec).unwrap();
    stand_in.fault("cuEventQuery|cuStreamQuery", NOT_READY, 0, None);
    let begun = Instant::now();
    let error = exec.finish(&mut |_, _| if begun.elapsed() > Duration::from_millis(50) { bail!("enough") } else { Ok(()) });
    assert_eq!(error.unwrap_err().to_string(), "enough");
    drop(exec);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // What it works with is kept as long as it does not end.
    assert!(stand_in.block(edit.plan().arena_bytes).len() == edit.plan().arena_bytes);
    stand_in.mend();
}

#[test]
fn a_recording_that_fails_leaves_nothing() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let step = edit.program.tensors.bodies.step;
    for (function, skip) in [("cuLaunchKernel", 3), ("cuGraphInstantiateWithFlags", 0), ("cuGraphInstantiateWithFlags", 1)] {
        let mut exec = stand_in.executor(edit.plan(), Arc::new(edit.weights()));
        exec.begin(&edit.plan().itinerary.clone()).unwrap();
        for body in edit.plan().itinerary.visits() {
            exec.run(body, &mut unwatched).unwrap();
            if body == step {
                break;
            }
        }
        stand_in.fault(function, OUT_OF_MEMORY, skip, Some(1));
        let error = exec.run(step, &mut unwatched).expect_err("it cannot be recorded");
        assert!(error.is::<ResourceError>(), "{error:#}");
        assert_eq!(stand_in.graphs(), 0);
        exec.run(step, &mut unwatched).expect("there is memory again");
        exec.finish(&mut unwatched).unwrap();
    }
}
