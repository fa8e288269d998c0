use std::os::unix::fs::PermissionsExt;

use super::super::binaries::{self, Binary};
use super::*;
use crate::arch::Arch;
use crate::paths;

/// Entries that run this very test binary.
fn entry(name: &str, limit: u64) -> Entry {
    Entry {
        limit: Duration::from_secs(limit),
        file: std::env::current_exe().unwrap(),
        folder: paths::root(),
        part: Part::Test,
        binary: "xtask".to_owned(),
        name: name.to_owned(),
    }
}

#[test]
fn lines_are_read_back() {
    for part in [Part::Bench, Part::Test, Part::Several(3)] {
        let entry = Entry { part, ..entry("a::b - should panic", 7) };
        assert_eq!(Entry::from_line(entry.to_line().trim_end()), Some(entry));
    }
    assert_eq!(Entry::from_line("1\t/a\t/b\tfalse\tid"), None);
}

#[test]
fn a_plan_runs_its_tests_and_sees_those_that_do_not_exist() {
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).unwrap();
    let plan = folder.join(format!("{}.plan", std::process::id()));
    let results = plan.with_extension("results");
    write(&plan, &[entry("suite::plan::tests::lines_are_read_back", 60), entry("no_such_test", 60)]).unwrap();
    run(&plan, &results, 2, None).unwrap();
    assert_eq!(read_results(&results, 3), [Some(true), Some(false), None]);
    // Another place has taken the first.
    let claims = plan.with_extension("claims");
    fs::create_dir(&claims).unwrap();
    assert!(run(&plan, &results, 2, Some(&claims)).is_err(), "a folder of this place alone");
    fs::write(claims.join(MARK), "").unwrap();
    assert!(claim(&claims, 0).unwrap() && !claim(&claims, 0).unwrap());
    run(&plan, &results, 2, Some(&claims)).unwrap();
    assert_eq!(read_results(&results, 2), [None, Some(false)]);
    run(&plan, &results, 2, Some(&claims)).unwrap();
    assert_eq!(read_results(&results, 2), [None, None], "all are taken");
    fs::remove_dir_all(&claims).unwrap();
    for extension in ["plan", "results", "log0", "log1"] {
        fs::remove_file(plan.with_extension(extension)).unwrap();
    }
}

#[test]
fn several_tests_of_a_binary_are_counted() {
    let binary = Binary {
        arch: Arch::HOST,
        id: "xtask".to_owned(),
        target: "xtask".to_owned(),
        file: std::env::current_exe().unwrap(),
        folder: paths::root(),
        is_bench: false,
        starts_examples: false,
    };
    let tests = binaries::tests(&binary).unwrap();
    let here = ["lines_are_read_back", "a_test_that_hangs_is_ended"]
        .map(|name| format!("suite::plan::tests::{name}"));
    let tests: Vec<&Test> = tests.iter().filter(|test| here.contains(&test.name)).collect();
    let gone = Test { name: "no_such_test".to_owned(), ..tests[0].clone() };
    let log = paths::target().join("xtask-tests").join(format!("{}.all", std::process::id()));
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let run = |tests: &[&Test]| Entry::several(tests, Duration::from_secs(60)).unwrap().run(None, &log);
    run(&tests).unwrap();
    assert!(run(&[tests[0], &gone]).unwrap_err().message.contains("passed: 1"));
    fs::remove_file(&log).unwrap();
}

#[test]
fn a_test_that_hangs_is_ended() {
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).unwrap();
    let log = folder.join(format!("{}.hangs", std::process::id()));
    let program = log.with_extension("sh");
    fs::write(&program, "#!/bin/sh\nexec tail -f /dev/null\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Entry { file: program.clone(), ..entry("any", 0) }.run(None, &log).unwrap_err();
    fs::remove_file(&log).unwrap();
    fs::remove_file(&program).unwrap();
    assert!(error.message.contains("still running"), "{error}");
}
