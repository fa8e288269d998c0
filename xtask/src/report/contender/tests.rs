use super::*;

fn guest() -> Guest {
    Guest {
        folder: PathBuf::from("/run/a folder"),
        cmdline: "console=ttyS0 quiet".to_owned(),
        memory: 256,
        cpus: 2,
        tap: "tap0".to_owned(),
    }
}

#[test]
fn a_command_is_split_as_by_a_shell_and_filled_after_that() {
    let contender = Contender::parse(
        r#"other=vmm --kernel {kernel} --arg "two words" 'it''s' a\ b --disk=x,{disk} {cmdline} ''"#,
    )
    .unwrap();
    assert_eq!(contender.name, "other");
    let expected = [
        "vmm",
        "--kernel",
        "/run/a folder/kernel",
        "--arg",
        "two words",
        "its",
        "a b",
        "--disk=x,/run/a folder/disk",
        "console=ttyS0 quiet",
        "",
    ];
    assert_eq!(contender.command(&guest()), expected);
}

#[test]
fn every_placeholder_stands_for_something_and_other_braces_stay() {
    for (name, _) in PLACEHOLDERS {
        let contender = Contender::parse(&format!("a=b {{{name}}}")).unwrap();
        let [_, word] = &contender.command(&guest())[..] else { panic!("{contender:?}") };
        assert!(!word.contains('{'), "{word}");
    }
    let contender = Contender::parse(r#"a=b {"cpus":{cpus}} {} {tap"#).unwrap();
    assert_eq!(contender.command(&guest()), ["b", "{cpus:2}", "{}", "{tap"]);
    let contender = Contender::parse(r#"a=b '{"cpus":{cpus}}'"#).unwrap();
    assert_eq!(contender.command(&guest()), ["b", r#"{"cpus":2}"#]);
}

#[test]
fn what_is_wrong_is_named() {
    for (text, named) in [
        ("qemu-system-x86_64", "NAME=COMMAND"),
        ("=vmm", "name"),
        ("a b=vmm", "a b"),
        ("a=", "missing its command"),
        ("a=   ", "missing its command"),
        ("a=vmm {kernal}", "{kernal}"),
        ("a=vmm {kernal}", "{kernel}"),
        ("a=vmm 'open", "'"),
        ("a=vmm \\", "backslash"),
    ] {
        let error = Contender::parse(text).unwrap_err();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn the_built_in_commands_name_only_what_there_is() {
    let ours = Contender::microvm(Path::new("/m")).into_iter().chain([Contender::floor(Path::new("/f"))]);
    for contender in ours {
        for word in contender.command(&guest()) {
            assert!(!word.contains('{'), "{word}");
        }
    }
}

#[test]
fn a_firecracker_config_is_json_of_the_guest() {
    let config: serde_json::Value = serde_json::from_str(&guest().firecracker_config()).unwrap();
    assert_eq!(config["machine-config"]["mem_size_mib"], 256);
    assert_eq!(config["boot-source"]["kernel_image_path"], "/run/a folder/kernel");
}
