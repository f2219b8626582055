//! Weights that the device merges with LoRA files. The stand-in has the one kernel that this takes.

use step1x_edit::cuda::OutOfMemory;

use crate::common::tiny::{lora, lora_of_rank, merged_by_host};
use crate::memory::{Heard, edit_of, engine};
use crate::support::{OUT_OF_MEMORY, stand_in};

/// Of one file and of several, of a few ranks and of so many that a weight comes in pieces, the bytes are those of the host's merge.
#[test]
fn the_device_merges_what_the_host_would() {
    let Some(stand_in) = stand_in() else { return };
    let (dir, mut engine) = (tempfile::tempdir().unwrap(), engine(&stand_in));
    let modules = ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"];
    let [qkv, linear1] = modules.map(|module| lora(dir.path(), module, 0.75));
    let large = lora_of_rank(dir.path(), modules[0], 3000, -0.01);
    for loras in [vec![qkv.clone()], vec![linear1.clone(), qkv.clone()], vec![large, qkv, linear1]] {
        let before = engine.made().on_device.merged_bytes;
        engine.adapt(loras.clone()).unwrap();
        edit_of(&mut engine, 64, &mut Heard::default()).unwrap();
        assert!(engine.made().on_device.merged_bytes > before, "the host has merged {} files", loras.len());
        for module in modules {
            let (key, bytes) = merged_by_host(&engine.model.folder, module);
            assert!(engine.resident_bytes(&key).unwrap().unwrap() == bytes, "{module} with {} files", loras.len());
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Factors that have no room on the device, and sums of which it is not certain that they are finite, are the host's.
#[test]
fn what_the_device_cannot_merge_the_host_does() {
    let Some(stand_in) = stand_in() else { return };
    let (dir, mut engine) = (tempfile::tempdir().unwrap(), engine(&stand_in));
    let module = "double_blocks.0.img_attn.qkv";
    for (rank, scale) in [(20_000, 0.01), (3000, 1e38)] {
        engine.adapt(vec![lora_of_rank(dir.path(), module, rank, scale)]).unwrap();
        edit_of(&mut engine, 64, &mut Heard::default()).unwrap();
        let (key, bytes) = merged_by_host(&engine.model.folder, module);
        assert!(engine.resident_bytes(&key).unwrap().unwrap() == bytes, "rank {rank}, scale {scale}");
        assert_eq!(engine.made().on_device.merged_bytes, 0, "rank {rank}, scale {scale}");
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Memory for factors is taken before anything runs; without it the edit ends, and the next one is as good as any.
#[test]
fn memory_for_factors_is_taken_first() {
    let Some(stand_in) = stand_in() else { return };
    let (dir, mut engine, heard) = (tempfile::tempdir().unwrap(), engine(&stand_in), &mut Heard::default());
    edit_of(&mut engine, 64, heard).unwrap();
    let module = "single_blocks.0.linear1";
    engine.adapt(vec![lora(dir.path(), module, 1.0)]).unwrap();
    stand_in.fault("cuMemAlloc_v2", OUT_OF_MEMORY, 0, Some(1));
    let error = edit_of(&mut engine, 64, heard).err().expect("no memory for factors");
    assert!(OutOfMemory::is_in(&error), "{error:#}");
    edit_of(&mut engine, 64, heard).unwrap();
    let (key, bytes) = merged_by_host(&engine.model.folder, module);
    assert!(engine.resident_bytes(&key).unwrap().unwrap() == bytes);
    assert_eq!(stand_in.mistakes(), 0);
}
