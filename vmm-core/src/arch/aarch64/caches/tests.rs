use std::fs;

use tempfile::TempDir;

use super::*;

const FIRST_DATA: [&str; 6] = ["1", "Data", "64K", "64", "256", "0"];
const FIRST_INSTRUCTION: [&str; 6] = ["1", "Instruction", "48K", "64", "256", "0"];
const SECOND: [&str; 6] = ["2", "Unified", "1024K", "64", "2048", "0"];
const THIRD: [&str; 6] = ["3", "Unified", "32768K", "64", "32768", "0-63"];

/// A processor with these caches (level, type, size, line, sets, users; what is empty has no file).
fn host(threads: &str, caches: &[[&str; 6]]) -> TempDir {
    let cpu = tempfile::tempdir().unwrap();
    let topology = cpu.path().join("topology");
    fs::create_dir(&topology).unwrap();
    fs::write(topology.join("thread_siblings_list"), format!("{threads}\n")).unwrap();
    let names = ["level", "type", "size", "coherency_line_size", "number_of_sets", "shared_cpu_list"];
    for (index, values) in caches.iter().enumerate() {
        let folder = cpu.path().join(format!("cache/index{index}"));
        fs::create_dir_all(&folder).unwrap();
        for (name, value) in names.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
            fs::write(folder.join(name), format!("{value}\n")).unwrap();
        }
    }
    cpu
}

fn found(caches: &[[&str; 6]]) -> Option<Caches> {
    of(host("0", caches).path())
}

/// This cache with one value changed.
fn with(mut cache: [&'static str; 6], index: usize, value: &'static str) -> [&'static str; 6] {
    cache[index] = value;
    cache
}

fn first() -> Caches {
    Caches::new(Cache::new(64 << 10).lines(64, 256), Cache::new(48 << 10).lines(64, 256))
}

#[test]
fn each_vcpu_has_what_a_core_has_and_all_share_what_cores_share() {
    let (second, third) = (Cache::new(1 << 20).lines(64, 2048), Cache::new(32 << 20).lines(64, 32768));
    let all = [FIRST_DATA, FIRST_INSTRUCTION, SECOND, THIRD];
    assert_eq!(found(&all), Some(first().own(second).shared(third)));
    // In any order.
    assert_eq!(found(&[THIRD, SECOND, FIRST_INSTRUCTION, FIRST_DATA]), found(&all));
    // Threads of a core are that core.
    let threads = all.map(|cache| if cache[5] == "0" { with(cache, 5, "0,64") } else { cache });
    assert_eq!(of(host("0,64", &threads).path()), found(&all));
    // Behind one that is shared there is none for a core alone.
    let shared = [FIRST_DATA, FIRST_INSTRUCTION, with(SECOND, 5, "0-3"), with(THIRD, 5, "0")];
    assert_eq!(found(&shared), Some(first().shared(second).shared(third)));
}

#[test]
fn a_host_that_does_not_know_its_first_level_says_nothing() {
    // A folder without sizes is what Linux shows where neither a device tree nor ACPI tells it.
    let without_sizes = [with(FIRST_DATA, 2, ""), with(FIRST_INSTRUCTION, 2, "")];
    for caches in [&[][..], &without_sizes, &[FIRST_DATA], &[FIRST_INSTRUCTION, SECOND], &[SECOND, THIRD]] {
        assert_eq!(found(caches), None);
    }
    assert_eq!(of(Path::new("/nowhere")), None);
}

#[test]
fn nonsense_is_not_known() {
    for size in
        ["0", "0K", "-1", "64k", "K", "64KK", "64 K", "4194304K", "4G", "99999999999", "0x40", "\u{e4}K"]
    {
        assert_eq!(found(&[with(FIRST_DATA, 2, size), FIRST_INSTRUCTION]), None, "{size}");
    }
    for (index, value) in [(0, "0"), (0, "x"), (0, "99999999999"), (1, "Unified"), (1, ""), (5, "")] {
        assert_eq!(found(&[with(FIRST_DATA, index, value), FIRST_INSTRUCTION]), None, "{value:?}");
    }
    // Lines and sets that do not fit: the size alone is known.
    for (index, value) in [(3, ""), (3, "0"), (3, "48"), (4, ""), (4, "0"), (4, "-1"), (4, "4294967295")] {
        let caches = found(&[with(FIRST_DATA, index, value), FIRST_INSTRUCTION]).unwrap();
        assert_eq!(caches.data, Cache::new(64 << 10), "{value:?}");
        assert_eq!(caches.instruction, first().instruction);
    }
    // What is behind an unknown level is left out.
    let gap = with(SECOND, 2, "none");
    assert_eq!(found(&[FIRST_DATA, FIRST_INSTRUCTION, gap, THIRD]), Some(first()));
    assert_eq!(found(&[FIRST_DATA, FIRST_INSTRUCTION, with(SECOND, 1, "Data"), THIRD]), Some(first()));
    // And so is a level that no processor has.
    let mut many = vec![FIRST_DATA, FIRST_INSTRUCTION];
    many.extend(["2", "3", "4", "5", "6", "7", "8", "9"].map(|level| with(SECOND, 0, level)));
    assert_eq!(found(&many).unwrap().own.len(), 6);
}

#[test]
fn sizes_have_suffixes() {
    assert_eq!(["512", "64K", "2M", "1G"].map(size), [Some(512), Some(65536), Some(2 << 20), Some(1 << 30)]);
}

#[test]
fn what_the_caller_gives_is_what_guests_are_told() {
    let facts = HostFacts::default();
    facts.caches.set(Some(first())).unwrap();
    let told = |config: VmConfig| caches(&config, &facts).unwrap();
    assert_eq!(told(VmConfig::new(1)), Some(first()));
    assert_eq!(told(VmConfig::new(1).caches(None)), None);
    let given = first().own(Cache::new(1 << 20));
    assert_eq!(told(VmConfig::new(1).caches(given.clone())), Some(given));
    let error = caches(&VmConfig::new(1).caches(first().own(Cache::new(0))), &facts).unwrap_err();
    assert!(
        error.to_string().starts_with("caches: Cache { size: 0, lines: None } of level 2 is none"),
        "{error}"
    );
}

#[test]
fn what_the_guests_processors_say_of_their_caches_is_not_contradicted() {
    let (second, third) = (Cache::new(1 << 20), Cache::new(32 << 20));
    let all = || first().own(second).shared(third);
    // Separate, unified, unified; the same with the third outside of the processors.
    assert_eq!(by_clidr(all(), 0b100_100_011), Some(all()));
    assert_eq!(by_clidr(all(), 0x0a20_0000 | 0b100_011), Some(all()));
    // The second or the third in two halves.
    assert_eq!(by_clidr(all(), 0b100_011_011), Some(first()));
    assert_eq!(by_clidr(all(), 0b011_100_011), Some(first().own(second)));
    // As KVM tells where nothing has to be maintained, or instructions alone: one level for both; instructions, then both.
    assert_eq!(by_clidr(all(), 0b100), None);
    assert_eq!(by_clidr(all(), 0b100_001), None);
    assert_eq!(by_clidr(all(), 0), None);
}
