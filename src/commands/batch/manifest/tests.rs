use super::*;

fn read(text: &str) -> Result<Vec<Item>> {
    Reader::default().text(text, Path::new("in"), false)
}

fn pairs(items: &[Item]) -> Vec<(&str, &str)> {
    items.iter().map(|item| (item.image.as_str(), item.prompt.as_str())).collect()
}

#[test]
fn every_form_gives_the_items_in_its_order() {
    let wanted = [("b.jpg", "red"), ("a.png", "变蓝")];
    for text in [
        r#"{"b.jpg": "red", "a.png": "变蓝"}"#,
        "\u{feff}{\n    \"b.jpg\": \"red\",\n    \"a.png\": \"变蓝\"\n}",
        r#"{"t/1.png": {"ref_image_path": "b.jpg", "caption": "red"}, "t/2.png": {"ref_image_path": "a.png", "caption": "变蓝"}}"#,
        r#"[{"input": "b.jpg", "instruction": "red"}, {"input": "a.png", "instruction": "变蓝"}]"#,
        "{\"image\": \"b.jpg\", \"prompt\": \"red\"}\r\n\n{\"file_name\": \"a.png\", \"instruction\": \"变蓝\"}\n",
    ] {
        let items = read(text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
        assert_eq!(pairs(&items), wanted, "{text}");
        assert!(matches!(&items[0].source, Source::File(path) if path == Path::new("in/b.jpg")));
    }
    let one = read(r#"{"image": "b.jpg", "prompt": "red"}"#).unwrap();
    assert_eq!(pairs(&one), [("b.jpg", "red")], "one line of JSONL, not two pictures called image and prompt");
    let named = read(r#"{"t/1.png": {"ref_image_path": "b.jpg", "caption": "red"}}"#).unwrap();
    assert_eq!(named[0].id.as_deref(), Some("1"));
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    for (text, words) in [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("image,prompt\na.png,red\n", "CSV"),
        ("{\"a.png\": \"red\", \"a.png\": \"blue\"}", "\"a.png\" is there twice"),
        ("{\"a.png\": \"red\",\n \"b.png\": }", "it is no JSON"),
        ("{\"a.png\": 3}", "entry \"a.png\": it is neither a prompt nor"),
        ("{\"image\": \"a\", \"prompt\": \"x\"}\n{\"image\": \"b\"\n", "line 2: it is no JSON"),
        ("{\"image\": \"a\", \"prompt\": \"x\"}\n[1]\n", "line 2: it is no JSON object"),
        ("{\"image\": \"a\", \"prompt\": \"x\"}\n{\"image\": \"b\"}\n", "line 2: it has no \"prompt\""),
        ("[1]", "entry 1: it is no object"),
        ("[{\"image\": \"a\"", "it is no JSON"),
    ] {
        let error = format!("{:#}", read(text).unwrap_err());
        assert!(error.contains(words), "{text}: {error}");
    }
    let error = format!("{:#}", utf8(b"{}\n\xff\n").unwrap_err());
    assert!(error.contains("line 2 is not UTF-8"), "{error}");
    assert!(utf8(b"\xff\xfe{\0").unwrap_err().to_string().contains("UTF-16"));
}

#[test]
fn a_folder_gives_its_pictures_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let reader = Reader { prompt: Some("red".into()), ..Reader::default() };
    assert!(reader.read(dir.path()).unwrap_err().to_string().contains("holds no pictures"));
    for name in ["b.PNG", "a.jpg", "notes.txt"] {
        fs::write(dir.path().join(name), b"x").unwrap();
    }
    assert_eq!(pairs(&reader.read(dir.path()).unwrap().items), [("a.jpg", "red"), ("b.PNG", "red")]);
    let without = Reader::default().read(dir.path()).unwrap_err().to_string();
    assert!(without.contains("say with -p"), "{without}");
    fs::write(dir.path().join(METADATA), "{\"file_name\": \"b.PNG\", \"instruction\": \"blue\"}\n").unwrap();
    assert_eq!(pairs(&Reader::default().read(dir.path()).unwrap().items), [("b.PNG", "blue")]);
}

#[cfg(unix)]
#[test]
fn a_manifest_has_at_most_so_many_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.json");
    let file = fs::File::create(&path).unwrap();
    file.set_len(MANIFEST_BYTES_MAX + 1).unwrap();
    let error = format!("{:#}", Reader::default().read(&path).unwrap_err());
    assert!(error.contains("split it"), "{error}");
    file.set_len(3).unwrap();
    let error = format!("{:#}", Reader::default().read(&path).unwrap_err());
    assert!(!error.contains("split it"), "{error}");
}
