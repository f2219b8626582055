use super::*;
use crate::tensor::Component;

fn bytes(first: &[u8]) -> String {
    what_bytes(first).map_or(String::new(), |foreign| foreign.to_string())
}

fn names(names: &[&str], wanted: Component) -> String {
    what_names(names.iter().copied(), Some(wanted)).map_or(String::new(), |foreign| foreign.to_string())
}

#[test]
fn files_are_known_by_their_first_bytes() {
    let tar = [&[b'x'; 257][..], b"ustar\x0000", &[0; 200]].concat();
    for (first, what) in [
        (&b"GGUF\x03\0\0\0\x01\0\0\0"[..], "GGUF"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "a zip archive, as PyTorch's"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "a pickled PyTorch file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "a gzip archive"),
        (&tar, "a tar archive"),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.13.", "an ONNX model"),
        (b"\x08\x01\x12\xd3\x01\x0a\x02", "a TensorFlow model"),
        (b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model"),
        (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer, not the weights; run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html class=\"\">", "a web page"),
        (b"\xef\xbb\xbf\r\n  <HTML><head>", "a web page"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "a web page"),
        (b"Entry not found", "a text that begins with \"Entry not found\"; the download went wrong"),
        (b"{\"error\":\"Repository not found\"}", "a text that begins with \"{\"error\":\"Repository not found\"}\""),
        (&[0; 100], "begins with zeros"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a picture; give it with -i"),
    ] {
        assert!(bytes(first).contains(what), "{what}: {}", bytes(first));
    }
    let long = "这不是模型".repeat(40);
    assert!(bytes(&long.as_bytes()[..FIRST]).contains("这不是模型"), "a character is cut in two");
}

#[test]
fn safetensors_and_unknown_files_are_left_to_their_reader() {
    let header = |length: u64| [&length.to_le_bytes()[..], b"{\"__metadata__\":{}}"].concat();
    // These lengths begin as a pickled file, a gzip archive and a TensorFlow model do.
    for length in [90, 0x0280, 0x8b1f, 0x0012_0108] {
        assert_eq!(bytes(&header(length)), "");
    }
    for first in [&b""[..], b"\x01\x02\x03", b"\x01\0\0\0\0\0\0\0[", &[0xfe; 64]] {
        assert_eq!(bytes(first), "");
    }
}

#[test]
fn models_are_known_by_their_tensors() {
    for (of, what) in [
        (&["double_blocks.0.img_attn.qkv.weight", "txt_in.weight", "guidance_in.in_layer.weight"][..], "FLUX, not"),
        (&["single_transformer_blocks.0.proj_mlp.weight", "context_embedder.weight"], "FLUX in the diffusers layout"),
        (&["joint_blocks.0.context_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (&["input_blocks.0.0.weight", "label_emb.0.0.weight"], "Stable Diffusion XL"),
        (&["conv_in.weight", "time_embedding.linear_1.weight"], "Stable Diffusion, not"),
        (&["txt_norm.weight", "transformer_blocks.0.img_mod.1.weight", "img_in.weight"], "Qwen-Image"),
        (&["patch_embedding.weight", "blocks.0.self_attn.q.weight"], "Wan"),
        (&["model.visual.blocks.0.mlp.gate_proj.weight"], "Qwen2.5-VL, the text encoder"),
        (&["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
        (&["decoder.conv_in.weight", "decoder.mid.attn_1.q.weight"], "FLUX's autoencoder"),
        (&["decoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.weight"], "an autoencoder in the diffusers layout"),
        (&["img_in.weight", "img_in.weight_scale_2"], "two scales a weight"),
        (&["img_in.qweight", "img_in.qzeros", "img_in.scales"], "quantised"),
        (&["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha"], "a LoRA"),
        (&["transformer.a.lora_A.weight", "transformer.a.lora_B.weight"], "a LoRA"),
        (&["transformer.a.lora_A.default.weight", "transformer.a.lora_B.default.weight"], "a LoRA"),
    ] {
        let text = names(of, Component::Dit);
        assert!(text.starts_with("this is ") && text.contains(what), "{of:?}: {text}");
    }
    let text = names(&["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"], Component::Dit);
    assert!(text.contains("this is Stable Diffusion 3"), "{text}");
}

#[test]
fn each_file_is_right_in_its_own_place() {
    let own = [
        (Component::Dit, &["double_blocks.0.img_attn.qkv.weight", "txt_in.weight", "connector.S.input_embedder.weight"][..]),
        (Component::Vae, &["decoder.conv_in.weight", "decoder.mid.attn_1.q.weight"]),
        (Component::Dit, &["connector.S.input_embedder.weight", "transformer_blocks.0.attn.add_k_proj.weight"]),
        (Component::Vae, &["decoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.weight"]),
        (
            Component::Qwen,
            &["visual.blocks.0.mlp.gate_proj.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"],
        ),
    ];
    for (place, of) in own {
        for wanted in [Component::Dit, Component::Vae, Component::Qwen] {
            assert_eq!(names(of, wanted).is_empty(), place == wanted, "{place} as {wanted}");
        }
        assert_eq!(what_names(of.iter().copied(), None), None, "{place}");
    }
    // What lacks tensors, or has some more, is not another model.
    assert_eq!(names(&["double_blocks.0.img_attn.qkv.weight", "txt_in.weight", "connector.S.x"], Component::Dit), "");
    assert_eq!(names(&["img_in.weight", "lora.up", "a.lora_up.weight", "b"], Component::Dit), "");
    assert_eq!(names(&[], Component::Dit), "");
    let text = names(&["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"], Component::Qwen);
    assert!(text.contains("sees no pictures") && text.contains("put Qwen2.5-VL-7B-Instruct in its place"), "{text}");
}

/// The tensors of Step1X-Edit's own files are not taken for anything else, in the released size of both versions.
#[test]
fn the_released_files_are_not_foreign() {
    use crate::model::{Config, Version};
    for version in [Version::V1_0, Version::V1_1] {
        let checkpoint = Config::full(version).checkpoint();
        for place in [Component::Dit, Component::Vae, Component::Qwen] {
            let own = checkpoint.iter().filter(|(component, ..)| *component == place).map(|(_, name, ..)| name.as_str());
            assert_eq!(what_names(own, Some(place)), None, "{place} of {version}");
        }
    }
}

mod fuzz {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = what_bytes(&bytes);
        }
    }
}
