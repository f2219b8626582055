use super::*;
use proptest::prelude::*;

/// A file of this header and data, as bytes.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// What opening such a file says.
fn fault(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let text = WeightFile::open(&path).unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}: ", path.display())), "{text}");
    text
}

fn fault_of(header: &str, data_bytes: usize) -> String {
    fault(&file(header, &vec![0; data_bytes]))
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
    "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;

#[test]
fn a_sound_file_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.safetensors");
    let data: Vec<u8> = (0..16).collect();
    std::fs::write(&path, file(TWO, &data)).unwrap();
    let weights = WeightFile::open(&path).unwrap();
    let names: Vec<_> = weights.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(*weights.spec("b").unwrap(), Spec::new(DType::BF16, [2, 3]));
    assert_eq!(weights.read("b").unwrap(), &data[4..]);
    weights.give_back("b");
    weights.give_back("no tensor");
    assert_eq!(weights.read("b").unwrap(), &data[4..], "what was given back is read again");
    assert!(weights.spec("__metadata__").is_none());
    assert_eq!(weights.bytes(), 8 + TWO.len() as u64 + 16);
}

#[test]
fn faults_of_the_length_are_told() {
    assert!(fault(b"").contains("0 bytes are too short"));
    assert!(fault(b"\0\x01\x02\x03\x04\x05\x06").contains("7 bytes are too short"));
    let beyond = fault(&[&100u64.to_le_bytes()[..], b"{}"].concat());
    assert!(beyond.contains("header of 100 bytes, but 2 follow"), "{beyond}");
    let huge = fault(&[&(1u64 << 60).to_le_bytes()[..], b"{}"].concat());
    assert!(huge.contains("at most 16000000"), "{huge}");
    let header = |bytes: usize| file(&format!("{{{}}}", " ".repeat(bytes - 2)), b"");
    assert!(parse_header(&header(16_000_000), 16_000_008).unwrap().is_empty());
    let larger = fault(&header(16_000_001));
    assert!(larger.contains("header of 16000001 bytes, where at most 16000000"), "{larger}");
    assert!(fault(b"version https://lfs\noid sha256:0\n").contains("git lfs pull"));
}

#[test]
fn faults_of_the_json_are_told() {
    for header in ["", "<html></html>", "[]", "{\"a\":1}", "{", "{} {}"] {
        assert!(fault_of(header, 0).contains("its header is not"), "{header}");
    }
    let no_shape = fault_of(r#"{"x.y":{"dtype":"F32","data_offsets":[0,4]}}"#, 4);
    assert!(no_shape.contains(r#""x.y": missing field `shape`"#), "{no_shape}");
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let twice = fault_of(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 4);
    assert!(twice.contains(r#""a" appears twice"#), "{twice}");
    let negative = fault_of(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4);
    assert!(negative.contains("`-1`"), "{negative}");
}

fn one(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
}

#[test]
fn faults_of_an_entry_are_told() {
    let dtype = fault_of(&one("F8_E8M0", "[4]", 0, 4), 4);
    assert!(dtype.contains(r#"tensor "w": dtype "F8_E8M0" is unknown"#), "{dtype}");
    let size = fault_of(&one("BF16", "[4]", 0, 4), 4);
    assert!(size.contains("bf16[4] needs 8 bytes, but its offsets 0..4 hold 4"), "{size}");
    let reversed = fault_of(&one("U8", "[4]", 4, 0), 4);
    assert!(reversed.contains("end at 0, before they begin at 4"), "{reversed}");
    for shape in ["[4294967296,4294967296]", "[0,4294967296,4294967296]", "[9223372036854775807]"] {
        let overflow = fault_of(&one("F32", shape, 0, 0), 0);
        assert!(overflow.contains("more elements than can be addressed"), "{overflow}");
    }
    let extents = |count: usize| one("U8", &format!("[{}]", vec!["1"; count].join(",")), 0, 1);
    assert_eq!(
        parse_header(&file(&extents(16), b"x"), file(&extents(16), b"x").len() as u64).unwrap()["w"].spec.shape.0.len(),
        16
    );
    let many = fault_of(&extents(17), 1);
    assert!(many.contains("at most 16 whole numbers"), "{many}");
    let offset = fault_of(&one("U8", "[1]", u64::MAX - 1, u64::MAX), 0);
    assert!(offset.contains("exceeds any file"), "{offset}");
}

#[test]
fn faults_of_the_packing_are_told() {
    let pair = |begin: u64| {
        let end = begin + 4;
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},
                 "b":{{"dtype":"U8","shape":[4],"data_offsets":[{begin},{end}]}}}}"#
        )
    };
    let overlap = fault_of(&pair(3), 7);
    assert!(overlap.contains(r#""b" overlaps the one before it by 1 bytes"#), "{overlap}");
    let gap = fault_of(&pair(6), 10);
    assert!(gap.contains(r#""b" leaves a gap before it of 2 bytes"#), "{gap}");
    let truncated = fault_of(&pair(4), 5);
    assert!(truncated.contains("3 bytes are missing"), "{truncated}");
    assert!(truncated.contains("incomplete"), "{truncated}");
    let trailing = fault_of(&pair(4), 9);
    assert!(trailing.contains("1 bytes follow the last tensor"), "{trailing}");
}

#[test]
fn what_is_no_file_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let absent = WeightFile::open(&dir.path().join("absent")).unwrap_err();
    assert!(absent.to_string().contains("cannot open it"), "{absent}");
    let folder = WeightFile::open(dir.path()).unwrap_err();
    assert!(folder.to_string().contains("not a regular file"), "{folder}");
}

#[test]
fn a_read_of_what_is_not_there_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.safetensors");
    std::fs::write(&path, file(TWO, &[7; 16])).unwrap();
    let weights = WeightFile::open(&path).unwrap();
    let fault = |name: &str, offset: usize| weights.read_at(name, offset, &mut [0; 4]).unwrap_err().to_string();
    assert!(fault("c", 0).contains("there is no tensor c"));
    assert!(fault("b", 9).contains("cannot read beyond the end of tensor b"));
    assert!(fault("b", usize::MAX).contains("cannot read beyond the end of tensor b"));
    let whole = weights.bytes();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(whole - 6).unwrap();
    let text = fault("b", 8);
    assert!(
        text.contains(&format!("two.safetensors: the file had {whole} bytes when it was opened and has {} now", whole - 6)),
        "{text}"
    );
    assert_eq!(weights.read("a").unwrap(), [7; 4], "what is still there is read");
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let key = prop_oneof![
        Just("dtype".to_string()),
        Just("shape".to_string()),
        Just("data_offsets".to_string()),
        Just("__metadata__".to_string()),
        "[a-z.]{0,6}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<u64>().prop_map(Into::into),
        (0..64u64).prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        prop_oneof![Just("F32"), Just("U8"), Just("BF16"), Just("Q4")].prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| pairs.into_iter().collect::<serde_json::Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn mutated_headers_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in 0..200usize,
        file_len in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        let mut bytes = file(TWO, &[0; 16]);
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        let len = file_len.unwrap_or(bytes.len() as u64);
        if let Ok(entries) = parse_header(&bytes, len) {
            for entry in entries.values() {
                prop_assert_eq!(entry.range.len(), entry.spec.bytes());
                prop_assert!(entry.range.end as u64 <= len);
            }
        }
    }

    #[test]
    fn random_json_never_panics(value in json(), data in 0..100usize) {
        let bytes = file(&value.to_string(), &vec![0; data]);
        let _ = parse_header(&bytes, bytes.len() as u64);
    }

    #[test]
    fn random_entries_never_panic(
        shape in prop::collection::vec(prop_oneof![0..4u64, any::<u64>()], 0..4),
        begin in prop_oneof![0..8u64, any::<u64>()],
        end in prop_oneof![0..64u64, any::<u64>()],
    ) {
        let bytes = file(&one("F32", &format!("{shape:?}"), begin, end), &[0; 32]);
        if let Ok(entries) = parse_header(&bytes, bytes.len() as u64) {
            let shape = &entries["w"].spec.shape;
            prop_assert_eq!(shape.rows() * shape.cols(), shape.elements());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse_header(&bytes, bytes.len() as u64);
    }
}
