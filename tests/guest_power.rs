//! Every way in which a machine ends: by its guest, by a signal, by a key, by a crash; with the right exit code, and
//! with the terminal as it was.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ossature::bus::Device;
use ossature::legacy::I8042;
use ossature::vmm::Kvm;
use ossature::vmm::machine::Outcome;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{ACPI, EARLY, Ended, FIRST_WORDS, Guest, LIMIT, Running, stamp};
use xtask::process;

/// The exit code for a reset by the guest.
const RESET: i32 = 3;
/// The kernel's last words before it turns the machine off.
const POWER_DOWN: &str = "reboot: Power down";
#[test]
fn a_guest_that_powers_off() {
    let ended = Guest::new().run("kernel", "uname -r").start().wait();
    ended.expect(0);
    assert!(ended.out.contains(POWER_DOWN), "{ended}");
}

#[test]
fn a_guest_that_reboots() {
    let ended = Guest::new().args(["--cpus", "2"]).run("reboot", "reboot -f").start().wait();
    ended.expect(RESET);
    assert!(ended.out.contains("reboot: Restarting system"), "{ended}");
    assert_eq!(ended.err, "", "{ended}");
}

/// How often the guest with a count starts.
const STARTS: usize = 6;

/// A guest that counts its starts on a disk. It resets until there have been `STARTS`, and then powers off.
fn counting_guest(image: &Path) -> Guest {
    fs::write(image, [0; 4096]).unwrap();
    let count = format!(
        r#"n=$(($(head -c 1 /dev/vda | tr '\0' 0) + 1))
        printf $n | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
        printf "start $n, up for %s\n" "$(cut -d . -f 1 /proc/uptime)"
        read -r line </dev/console
        [ $n = {STARTS} ] || reboot -f"#
    );
    Guest::new().disk(image, "").run("count", &count)
}

#[test]
fn a_guest_that_reboots_starts_again_in_the_same_machine() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let mut guest = counting_guest(&image).args(["--on-reset", "restart"]).start();
    let mut threads = Vec::new();
    for start in 1..=STARTS {
        guest.wait_for(&format!("start {start}, up for "));
        threads.push(guest.threads());
        guest.type_in("\n");
    }
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    assert!(ended.out.contains(POWER_DOWN), "{ended}");
    assert_eq!(ended.out.matches("reboot: Restarting system").count(), STARTS - 1, "{ended}");
    assert_eq!(fs::read(&image).unwrap()[0], b'0' + STARTS as u8);
    assert!(threads.iter().all(|then| *then == threads[0]), "the machine has the same threads: {threads:?}");
}

#[test]
fn a_guest_that_reboots_ends_a_machine_that_is_to_exit() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let mut guest = counting_guest(&image).args(["--on-reset", "exit"]).start();
    guest.wait_for("start 1, up for ");
    guest.type_in("\n");
    let ended = guest.wait();
    ended.expect(RESET);
    assert_eq!(ended.err, "", "{ended}");
    assert!(ended.out.contains("reboot: Restarting system") && !ended.out.contains("start 2"), "{ended}");
    assert_eq!(fs::read(&image).unwrap()[0], b'1');
}

#[test]
fn a_kernel_that_panics() {
    let ended = Guest::new().args(["--cpus", "2"]).run("crash", "echo c >/proc/sysrq-trigger").start().wait();
    ended.expect(1);
    assert!(ended.out.contains("Kernel panic - not syncing: sysrq triggered crash"), "{ended}");
    assert_eq!(ended.err, "microvm: the guest's kernel panicked\n", "{ended}");
}

#[test]
fn t7_a_kernel_that_panics_before_its_pvpanic_driver_is_loaded() {
    // No root file system: the driver, a module, is never seen.
    let ended = Guest::new().cmdline("rdinit=/nowhere").start().wait();
    ended.expect(RESET);
    assert!(ended.out.contains("Kernel panic - not syncing"), "{ended}");
}

#[test]
fn t6_a_triple_fault_that_resets_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let args = ["--on-triple-fault", "reset", "--on-reset", "restart", "--cpus", "2"];
    let mut guest = counting_guest(&image).args(args).cmdline("reboot=t").start();
    for start in 1..=STARTS {
        guest.wait_for(&format!("start {start}, up for "));
        guest.type_in("\n");
    }
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "", "{ended}");
    assert!(ended.out.contains(POWER_DOWN), "{ended}");
    assert_eq!(fs::read(&image).unwrap()[0], b'0' + STARTS as u8);
}

#[test]
fn a_triple_fault() {
    // With this option Linux reboots by an exception that it cannot take.
    let guest = Guest::new().args(["--cpus", "2"]).cmdline("reboot=t").hold().run("crash", "reboot -f");
    let ended = on_terminal(guest, "ready\n", |guest| guest.type_in("\n"));
    ended.expect(1);
    for word in ["the guest crashed", "triple fault", "rip", "rsp", "cr3"] {
        assert!(ended.err.to_lowercase().contains(word), "no {word}: {ended}");
    }
}

#[test]
fn ctrl_alt_del_reboots() {
    let guest = Guest::new().hold().run("wait", "sleep 1000");
    let i8042 = I8042::new("i8042");
    let keyboard = i8042.keyboard();
    let (builder, mut terminal) = guest.machine("keyboard", [Box::new(i8042) as Box<dyn Device>]);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    terminal.wait_for("ready\n");
    terminal.type_in("\n");
    assert!(keyboard.press_ctrl_alt_del());
    let outcome = machine.wait().unwrap();
    assert!(matches!(outcome, Outcome::Reset), "{outcome:?}: {}", terminal.log.text());
    drop(machine);
    let text = || terminal.log.text();
    assert!(terminal.log.wait_for_end(LIMIT) && text().contains("reboot: Restarting system"), "{}", text());
}

#[test]
fn the_boot_timer_prints_phases_and_stamps_what_the_guest_writes() {
    let ended = Guest::new()
        .args(["--boot-timer"])
        .program("/bin/stamp", stamp::program(123))
        .program("/bin/again", stamp::program(7))
        .run("stamps", "stamp; again")
        .start()
        .wait();
    ended.expect(0);
    ended.answers();
    for what in ["layout", "payload", "start", "vcpu0"] {
        assert!(ended.err.lines().any(|line| line.starts_with(&format!("microvm: {what} "))), "{ended}");
    }
    let stamps: Vec<(&str, u64)> = ended.err.lines().filter_map(parse_stamp).collect();
    let [("123", first), ("7", second)] = stamps[..] else { panic!("{ended}") };
    assert!(first > 0 && second > first, "{ended}");
}

/// The value and the microseconds of a line that tells a stamp.
fn parse_stamp(line: &str) -> Option<(&str, u64)> {
    let (value, time) = line.strip_prefix("microvm: stamp ")?.split_once(" after ")?;
    Some((value, time.strip_suffix(" us")?.parse().ok()?))
}

#[test]
fn sigterm_presses_the_power_button() {
    // The daemon for the button has to listen before.
    let acpid = "until ls -l /proc/$(pidof acpid)/fd | grep /dev/input/event; do usleep 20000; done";
    let guest = Guest::new().args(ACPI).run("acpid", acpid).hold();
    let ended = on_terminal(guest, "ready\n", |guest| guest.signal(Signal::TERM));
    ended.expect(0);
    assert!(ended.out.contains(POWER_DOWN), "the guest turns itself off: {ended}");
}

#[test]
fn sigterm_stops_a_guest_that_ignores_the_button() {
    // The guest sees the button and does nothing about it.
    let ignore = r"killall acpid
        button=$(dirname $(dirname $(grep -l 'Power Button' /sys/class/input/event*/device/name)))
        exec 3</dev/input/${button##*/}
        printf 'listening\n'
        head -c 24 <&3 | wc -c
        printf 'pressed\n'
        sleep 1000";
    let guest = Guest::new().args(ACPI).run("ignore", ignore).start();
    guest.wait_for("listening\n");
    guest.signal(Signal::TERM);
    guest.wait_for("pressed\n");
    let ended = guest.wait();
    ended.expect(0);
    assert!(!ended.out.contains(POWER_DOWN), "{ended}");
}

#[test]
fn sigterm_stops_a_guest_that_boots() {
    // Whether it will have heard of the button or not: it does not end by itself.
    let guest = Guest::new().args(["--cpus", "2"]).cmdline(EARLY).run("wait", "sleep 1000").start();
    guest.wait_for(FIRST_WORDS);
    guest.signal(Signal::TERM);
    guest.wait().expect(0);
}

/// Runs the VMM on a terminal until the guest has printed `words`, does something to it, waits for its end, and
/// checks that the terminal has the modes that it had before.
fn on_terminal(guest: Guest, words: &str, act: impl FnOnce(&mut Running)) -> Ended {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).and_then(|()| unlockpt(&user)).unwrap();
    let path = PathBuf::from(ptsname(&user, Vec::new()).unwrap().into_string().unwrap());
    let terminal: File = open(&path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap().into();
    let modes = || process::text(process::command("stty").arg("-F").arg(&path).arg("-g")).unwrap();
    let before = modes();
    let mut guest = guest.start_on(&terminal, user.into());
    guest.wait_for(words);
    assert_ne!(modes(), before, "the terminal is raw while the guest has it");
    act(&mut guest);
    guest.wait_for_exit();
    assert_eq!(modes(), before, "the terminal is as it was before");
    drop(terminal);
    guest.wait()
}

/// A guest that has only begun to boot on a terminal, and what then ends it.
fn early_on_terminal(act: impl FnOnce(&mut Running)) {
    let ended = on_terminal(Guest::new().args(["--cpus", "2"]).cmdline(EARLY), FIRST_WORDS, act);
    ended.expect(0);
    assert!(!ended.out.contains(POWER_DOWN), "{ended}");
}

#[test]
fn ctrl_a_h_helps_and_ctrl_a_x_quits() {
    early_on_terminal(|guest| {
        guest.type_in("\u{1}h");
        assert!(guest.err.wait_for("Ctrl-A X quits", LIMIT), "{}", guest.err.text());
        guest.type_in("\u{1}x");
    });
}

#[test]
fn sigint_sighup_and_sigquit_stop_at_once() {
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT] {
        early_on_terminal(|guest| guest.signal(signal));
    }
}
