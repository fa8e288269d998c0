//! Each target's corpus, replayed: what a fuzzer found once is found by every run of the tests.

use std::fs;
use std::path::PathBuf;

use ossature_fuzz::TARGETS;

/// A file of the folder that has programs and corpora.
fn file(folder: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", folder, name].iter().collect()
}

fn folder(name: &str) -> PathBuf {
    file("corpus", name)
}

fn replay(name: &str) {
    let mut files: Vec<PathBuf> = fs::read_dir(folder(name))
        .unwrap_or_else(|e| panic!("the target {name} has no corpus: {e}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {name} is empty");
    for file in files {
        // Shown if it fails.
        println!("{}", file.display());
        ossature_fuzz::run(name, &fs::read(&file).unwrap());
    }
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets!(
    queue,
    mmio,
    virtio_pci,
    pci_config,
    msix,
    blk,
    net,
    net_control,
    net_stream,
    vsock,
    console,
    console_control,
    rng,
    fw_cfg,
    qcow2,
    kernel,
    unpack,
    state_file,
    device_state,
    snapshot,
    keyed_snapshot,
    packed,
    remote_client,
    remote_server,
    working_set,
);

#[test]
fn each_target_is_replayed_and_has_a_program() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.0).collect();
    assert_eq!(names, REPLAYED);
    for name in names {
        let program = file("fuzz_targets", &format!("{name}.rs"));
        assert!(
            fs::read_to_string(&program).unwrap().contains(&format!("\"{name}\"")),
            "{}",
            program.display()
        );
    }
    for folder in fs::read_dir(folder("")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(REPLAYED.contains(&&name[..]), "corpus/{name} is of no target");
    }
}
