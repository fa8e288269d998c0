use super::*;
use crate::{demo, paths, report, suite};

#[test]
fn a_program_is_found_and_a_made_up_one_is_not() {
    assert!(has("sh"));
    assert!(!has("no-such-program-anywhere"));
}

/// The packages that a bare system lacks for these programs.
fn of(programs: &[&[&str]]) -> Vec<&'static str> {
    let mut packages = missing(&programs.concat(), |_| false).unwrap();
    packages.sort_unstable();
    packages
}

#[test]
fn x1_a_command_asks_for_what_it_calls_and_for_nothing_else() {
    assert_eq!(of(&[]), Vec::<&str>::new());
    assert_eq!(of(&[NESTED]), ["busybox-static", "kmod", "qemu-system-x86", "xz-utils"]);
    assert_eq!(
        of(&[demo::PROGRAMS, NESTED]),
        ["busybox-static", "e2fsprogs", "iproute2", "kmod", "lz4", "qemu-system-x86", "xz-utils"]
    );
    assert_eq!(of(&[report::PROGRAMS]), ["busybox-static", "iproute2", "kmod", "lz4", "strace"]);
    assert_eq!(of(&[suite::programs("rustfmt")]), Vec::<&str>::new());
    assert!(missing(&["sh"], |_| true).unwrap().is_empty());
    let error = missing(&["no-such-program-anywhere"], |_| false).unwrap_err();
    assert!(error.message.contains("no-such-program-anywhere"), "{error}");
}

#[test]
fn x1_the_steps_of_the_test_suite_ask_for_every_program_that_has_a_package() {
    let all: Vec<&[&str]> = suite::STEPS.iter().map(|step| suite::programs(step)).collect();
    let mut every: Vec<&str> = PROGRAMS.iter().map(|(_, package)| *package).collect();
    every.sort_unstable();
    let all = all.concat();
    let nested = [&[all.as_slice(), NESTED], NESTED_AARCH64].concat();
    assert_eq!(of(&nested), every);
}

#[test]
fn x1_another_user_of_apt_is_waited_for_and_named() {
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).unwrap();
    let lock = folder.join(format!("{}.lock", std::process::id()));
    fs::write(&lock, "").unwrap();
    // Speaks as apt-get does while the lock is held.
    let script = "[ ! -e \"$1\" ] || { echo 'E: Could not get lock /l. It is held by process 7 (apt-get)' >&2; exit 100; }";
    let mut apt = process::command("sh");
    apt.args(["-c", script, "sh"]).arg(&lock);
    let mut said = Vec::new();
    wait_for_locks(&mut apt, Duration::ZERO, &mut |line| {
        said.push(line.to_owned());
        fs::remove_file(&lock).unwrap();
    })
    .unwrap();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].ends_with(": Could not get lock /l. It is held by process 7 (apt-get)"), "{said:?}");
}

#[test]
fn x1_other_failures_are_told_at_once() {
    let mut apt = process::command("sh");
    apt.args(["-c", "echo 'E: Unable to locate package nothing' >&2; exit 100"]);
    let error = wait_for_locks(&mut apt, Duration::ZERO, &mut |line| panic!("{line}")).unwrap_err();
    assert!(error.message.contains("Unable to locate package nothing"), "{error}");
}

#[test]
fn x1_every_way_in_which_a_lock_is_refused_is_known() {
    for said in [
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt)\nN: Be aware",
        "E: Could not get lock /var/lib/apt/lists/lock - open (11: Resource temporarily unavailable)",
        "E: Unable to acquire the dpkg frontend lock (/l), is another process using it?",
        "dpkg: error: dpkg frontend lock was locked by another process with pid 9",
    ] {
        assert!(lock_held_by_another(said).is_some_and(|line| !line.starts_with("E:")), "{said}");
    }
    assert_eq!(lock_held_by_another("E: Unable to fetch some archives"), None);
}
