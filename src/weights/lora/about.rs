//! What a LoRA file says of itself, and what it seems to be for.

use std::collections::BTreeMap;

use serde_json::Value;

/// The program that wrote a file, by its metadata, else by its tensors' names.
pub(super) fn trainer(metadata: &BTreeMap<String, String>, names: &[&str]) -> String {
    let said = |key: &str| metadata.get(key).map(String::as_str);
    let json = |key: &str| said(key).and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(name) = json("software").as_ref().and_then(|software| software.get("name")).and_then(Value::as_str) {
        return name.to_string();
    }
    if ["ot_branch", "ot_revision", "ot_config"].iter().any(|key| metadata.contains_key(*key)) {
        return "OneTrainer".into();
    }
    if let Some(network) = said("ss_network_module") {
        return match network {
            "library.lora_module" => "the official trainer".into(),
            lycoris if lycoris.starts_with("lycoris") => "LyCORIS".into(),
            other => format!("sd-scripts or a relative of it ({other})"),
        };
    }
    if metadata.contains_key("lora_adapter_metadata") {
        return "diffusers".into();
    }
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    let by_names = [
        ("lycoris_", "LyCORIS"),
        (".lora_A.default.", "DiffSynth-Studio or PEFT"),
        ("lora_transformer_", "OneTrainer"),
        ("lora_unet_", "sd-scripts or a relative of it"),
        ("diffusion_model.", "ai-toolkit or a program that writes ComfyUI's names"),
        ("transformer.", "diffusers, PEFT or ai-toolkit"),
    ];
    let found = by_names.iter().find(|(part, _)| has(part)).map(|(_, trainer)| format!("{trainer}, by the names"));
    found.unwrap_or_else(|| "unknown".into())
}

/// The model that a file says it was trained on.
pub(super) fn base_model(metadata: &BTreeMap<String, String>) -> Option<&str> {
    const KEYS: [&str; 5] = ["ss_base_model_version", "modelspec.architecture", "base_model", "baseModel", "ss_sd_model_name"];
    KEYS.iter().find_map(|key| metadata.get(*key)).map(String::as_str).filter(|text| !text.is_empty())
}

/// Another model that a file seems to be for, by its metadata and the names of its modules, prefixes removed.
pub(super) fn other_model<'n>(base: Option<&str>, modules: impl Iterator<Item = &'n str> + Clone) -> Option<&'static str> {
    if let Some(base) = base.map(str::to_ascii_lowercase) {
        let known = [
            ("step1x", None),
            ("flux", Some("FLUX")),
            ("qwen", Some("Qwen-Image")),
            ("sdxl", Some("Stable Diffusion XL")),
            ("stable-diffusion-xl", Some("Stable Diffusion XL")),
            ("sd_", Some("Stable Diffusion")),
            ("stable-diffusion", Some("Stable Diffusion")),
            ("wan", Some("Wan")),
            ("hunyuan", Some("HunyuanVideo")),
        ];
        if let Some((_, model)) = known.iter().find(|(word, _)| base.contains(word)) {
            return *model;
        }
    }
    let flat = |name: &str| name.replace('.', "_");
    let any = |parts: &[&str]| modules.clone().any(|name| parts.iter().any(|part| flat(name).contains(part)));
    let begins = |parts: &[&str]| modules.clone().any(|name| parts.iter().any(|part| flat(name).starts_with(part)));
    if any(&["img_mlp_net", "txt_mlp_net"]) || (any(&["img_mod_1"]) && begins(&["transformer_blocks_"])) {
        return Some("Qwen-Image");
    }
    if begins(&["down_blocks_", "up_blocks_", "mid_block_", "input_blocks_", "output_blocks_", "middle_block_"]) {
        return Some("Stable Diffusion");
    }
    if begins(&["joint_blocks_"]) {
        return Some("Stable Diffusion 3");
    }
    if begins(&["blocks_"]) && any(&["_self_attn_", "_cross_attn_", "_attn1_"]) {
        return Some("Wan");
    }
    begins(&["double_blocks_", "single_transformer_blocks_", "single_blocks_"]).then_some("FLUX")
}
