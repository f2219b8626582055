//! One engine whose limits change, whose programs take turns and whose weights become others, with the demo model.

use std::sync::Arc;
use std::time::Duration;

use step1x_edit::exec::Executor;
use step1x_edit::graph::Node;
use step1x_edit::image::Rgb;
use step1x_edit::pipeline::{EditParameters, Engine, Material, Purpose, Silent};
use step1x_edit::plan::{CONTEXT_BYTES, Plan};
use step1x_edit::weights::Lora;

use crate::common::tiny::lora;
use crate::memory::{Heard, edit_of, engine};
use crate::support::{OUT_OF_MEMORY, StandIn, Truth, stand_in};

/// Makes an edit of a width; where the weights are known every node must find its own.
fn edit(stand_in: &StandIn, engine: &mut Engine, width: usize, truth: Option<&Truth>, when: &str) -> Arc<Plan> {
    let picture = Rgb { width, height: 64, data: vec![100; width * 64 * 3] };
    let wanted = EditParameters { steps: 3, size_level: Some(64), cfg_scale: Some(6.0), ..EditParameters::new("make it blue") };
    let material = Material::new(&wanted, &engine.model, Some(&picture), &mut Silent).unwrap();
    let loaded = engine.ready(&material, Purpose::Edit).unwrap_or_else(|e| panic!("{when}: {e:#}"));
    let plan = loaded.program.plan.clone();
    let watch = &mut |node: Option<&Node>, exec: &dyn Executor| match (node, truth) {
        (Some(node), Some(truth)) => truth.check(stand_in, exec, node, when),
        _ => Ok(()),
    };
    loaded.exec.begin(&plan.itinerary).unwrap();
    plan.itinerary.visits().into_iter().for_each(|body| loaded.exec.run(body, watch).unwrap_or_else(|e| panic!("{when}: {e:#}")));
    loaded.exec.finish(watch).unwrap();
    plan
}

/// The weights with these LoRA files merged, and the plan that has all resident.
fn truth(stand_in: &StandIn, loras: &[Arc<Lora>]) -> (Truth, Arc<Plan>) {
    let mut engine = engine(stand_in);
    engine.adapt(loras.to_vec()).unwrap();
    let plan = edit(stand_in, &mut engine, 64, None, "resident");
    (Truth::of(stand_in, &plan), plan)
}

/// A budget so many hundredths of the way from the least to what all weights need.
fn budget(plan: &Plan, hundredths: usize) -> usize {
    let (least, most) = (plan.least_peak_bytes(), plan.peak_bytes());
    assert!(least < most);
    least + (most - least) / 100 * hundredths
}

/// A budget that changes between edits is kept from the next edit on, and used.
#[test]
fn an_engine_follows_its_budget() {
    let Some(stand_in) = stand_in() else { return };
    let (truth, resident) = truth(&stand_in, &[]);
    let mut engine = engine(&stand_in);
    for (turn, hundredths) in [None, Some(50), Some(5), Some(5), Some(80), None, Some(20), Some(50), None].into_iter().enumerate()
    {
        engine.place.max_vram = hundredths.map(|part| budget(&resident, part));
        let allowed = engine.place.max_vram.unwrap_or(usize::MAX / 2);
        let before = [stand_in.peak(), stand_in.peak()][1];
        let when = format!("turn {turn}, {hundredths:?}");
        for _ in 0..2 {
            let plan = edit(&stand_in, &mut engine, 64, Some(&truth), &when);
            assert_eq!(plan.weights.keeps_all(), hundredths.is_none(), "{when}");
            assert!(plan.peak_bytes() <= allowed, "{when}");
            // What is allowed is used.
            assert!(
                hundredths.is_none() || plan.peak_bytes() + 1_000_000 > allowed,
                "{when}: {} of {allowed}",
                plan.peak_bytes()
            );
        }
        let taken = (stand_in.peak(), stand_in.peak());
        assert!(taken.0 + CONTEXT_BYTES <= allowed.max(before + CONTEXT_BYTES), "{when}: {taken:?} of {allowed}");
        assert!(taken.1 + CONTEXT_BYTES <= allowed, "{when}: {taken:?} of {allowed}");
        assert_eq!(engine.stored_bytes() > 0, hundredths.is_some(), "{when}");
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Programs of two sizes on one region in turns, with LoRA files that come and go while weights stream.
#[test]
fn programs_take_turns_while_weights_stream_and_change() {
    let Some(stand_in) = stand_in() else { return };
    let dir = tempfile::tempdir().unwrap();
    let loras = [vec![], ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"].map(|m| lora(dir.path(), m, 1.0)).to_vec()];
    let truths = [&loras[0], &loras[1]].map(|loras| truth(&stand_in, loras));
    for hundredths in [5, 40] {
        let mut engine = engine(&stand_in);
        engine.place.max_vram = Some(budget(&truths[0].1, hundredths));
        for turn in 0..6 {
            let version = turn / 2 % 2;
            engine.adapt(loras[version].clone()).unwrap();
            for width in [64, 128, 64] {
                let plan = edit(&stand_in, &mut engine, width, Some(&truths[version].0), &format!("{width} wide, turn {turn}"));
                assert!(!plan.weights.keeps_all());
            }
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// The host's limit holds, is told once, and is followed when it changes.
#[test]
fn the_host_keeps_no_more_than_it_may() {
    let Some(stand_in) = stand_in() else { return };
    let (truth, resident) = truth(&stand_in, &[]);
    let (mut engine, mut heard) = (engine(&stand_in), Heard::default());
    engine.place.max_vram = Some(budget(&resident, 5));
    let mut stored = vec![];
    for limit in [Some(0), Some(5_000_000), None, Some(2_000_000)] {
        engine.place.max_ram = limit;
        for width in [64, 128, 64] {
            edit_of(&mut engine, width, &mut heard).unwrap();
            edit(&stand_in, &mut engine, width, Some(&truth), &format!("{limit:?} of the host"));
            assert!(engine.stored_bytes() <= limit.unwrap_or(usize::MAX), "{} of {limit:?}", engine.stored_bytes());
        }
        stored.push(engine.stored_bytes());
    }
    assert!(stored[0] == 0 && stored[1] > 2_000_000 && stored[2] > stored[1] && stored[3] > 0, "{stored:?}");
    let told = heard.0.iter().filter(|text| text.contains("may keep them ready")).count();
    assert_eq!((told, heard.0.len()), (3, 3), "once for each limit: {:?}", heard.0);
    assert_eq!(stand_in.mistakes(), 0);
}

#[test]
fn memory_that_is_not_locked_is_told_once() {
    let Some(stand_in) = stand_in() else { return };
    let (truth, resident) = truth(&stand_in, &[]);
    let (mut engine, mut heard) = (engine(&stand_in), Heard::default());
    engine.place.max_vram = Some(budget(&resident, 5));
    stand_in.fault("cuMemHostRegister_v2", OUT_OF_MEMORY, 0, None);
    for width in [64, 64, 128, 64] {
        edit_of(&mut engine, width, &mut heard).unwrap();
        std::thread::sleep(Duration::from_millis(100)); // it is locked by a thread of its own
        edit(&stand_in, &mut engine, width, Some(&truth), "without locked memory");
    }
    assert_eq!((heard.0.len(), engine.stored_bytes()), (1, 0), "{:?}", heard.0);
    assert!(heard.0[0].contains("less than half the speed") && heard.0[0].contains("does not lock"), "{}", heard.0[0]);
}
