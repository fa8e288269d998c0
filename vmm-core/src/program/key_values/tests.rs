use super::*;
use proptest::prelude::*;

const DISK: &[&str] = &["path=FILE", "readonly", "id=NAME"];

fn parse(argument: &str) -> Result<KeyValues, KeyValueError> {
    KeyValues::parse(argument.as_ref(), DISK)
}

#[track_caller]
fn refused(argument: &str, expected: &str) {
    assert_eq!(parse(argument).unwrap_err().to_string(), expected, "{argument}");
}

#[test]
fn c1_a_flag_is_on_or_off_and_nothing_else() {
    let flag = |suffix: &str| parse(&format!("path=p{suffix}")).unwrap().flag("readonly");
    for (suffix, is_on) in [
        ("", false),
        (",readonly", true),
        (",readonly=on", true),
        (",readonly=true", true),
        (",readonly=off", false),
        (",readonly=false", false),
    ] {
        assert_eq!(flag(suffix), Ok(is_on), "{suffix}");
    }
    let error = flag(",readonly=maybe").unwrap_err();
    assert_eq!(error.to_string(), "readonly is on, off, true or false, not \"maybe\"");
}

#[test]
fn c1_what_is_wrong_is_named() {
    refused("readonly", "path=FILE is missing");
    refused("path", "path=FILE is missing its value");
    refused("path=,readonly", "path=FILE is missing its value");
    refused("path=p,readonly=", "readonly is missing its value");
    refused("path=p,path=p", "path is there twice");
    refused("path=p,readonly,readonly=off", "readonly is there twice");
    let known = "known: path=FILE, readonly, id=NAME; a comma in a value is written twice";
    refused("path=p,size=1", &format!("unknown key \"size\"; {known}"));
    refused("path=p,", &format!("unknown key \"\"; {known}"));
    refused("", &format!("unknown key \"\"; {known}"));
}

#[test]
fn c1_text_is_utf8_and_other_values_are_what_they_are() {
    let keys = KeyValues::parse(OsStr::from_bytes(b"path=\xff,id=\xfe"), DISK).unwrap();
    assert_eq!(keys.value("path"), Some(OsStr::from_bytes(b"\xff")));
    assert_eq!(keys.text("id").unwrap_err().to_string(), r#"id is not UTF-8: "\xFE""#);
}

#[test]
fn c1_a_value_that_is_not_what_it_should_be_is_named() {
    assert_eq!(parse("path=1").unwrap().parsed::<u8>("path"), Ok(Some(1)));
    assert_eq!(parse("path=1").unwrap().parsed::<u8>("id"), Ok(None));
    let error = parse("path=p,id=256").unwrap().parsed::<u8>("id").unwrap_err();
    assert_eq!(error.to_string(), "id: number too large to fit in target type");
}

#[test]
fn c1_a_value_may_have_an_equals_sign() {
    assert_eq!(parse("path=a=b").unwrap().text("path"), Ok(Some("a=b")));
}

proptest! {
    #[test]
    fn c1_any_value_can_be_written(path in prop::collection::vec(any::<u8>(), 1..64), id in "[,=a]{1,8}") {
        let mut argument = b"path=".to_vec();
        argument.extend(path.iter().flat_map(|&byte| vec![byte; if byte == b',' { 2 } else { 1 }]));
        argument.extend(format!(",readonly,id={}", id.replace(',', ",,")).bytes());
        // Two commas are one in a value: that of the path and the one that ends it are told apart from the left.
        let keys = KeyValues::parse(OsStr::from_bytes(&argument), DISK).unwrap();
        prop_assert_eq!(keys.value("path"), Some(OsStr::from_bytes(&path)));
        prop_assert_eq!(keys.text("id"), Ok(Some(id.as_str())));
    }
}
