//! Fuzz targets: each takes bytes from whoever makes them, libFuzzer or the corpus, has them mean something hostile, and
//! fails by a panic.

mod boot;
mod devices;
mod fw_cfg;
mod guest;
mod input;
mod pci;
mod qcow2;
mod queue;
mod registers;
mod snapshot;
mod sources;
mod state;

use std::cell::Cell;
use std::sync::Once;

pub use input::Input;

/// A target: its name, which is that of its folder in `corpus/` and of its program, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("queue", queue::run),
    ("mmio", registers::mmio),
    ("virtio_pci", registers::pci),
    ("pci_config", pci::config),
    ("msix", pci::msix),
    ("blk", devices::blk),
    ("net", devices::net),
    ("net_control", devices::net_control),
    ("net_stream", devices::net_stream),
    ("vsock", devices::vsock),
    ("console", devices::console),
    ("console_control", devices::console_control),
    ("rng", devices::rng),
    ("fw_cfg", fw_cfg::run),
    ("qcow2", qcow2::run),
    ("kernel", boot::kernel),
    ("unpack", boot::unpack),
    ("state_file", state::file),
    ("device_state", state::devices),
    ("snapshot", snapshot::run),
    ("keyed_snapshot", snapshot::run_keyed),
    ("packed", sources::packed),
    ("remote_client", sources::remote_client),
    ("remote_server", sources::remote_server),
    ("working_set", sources::working_set),
];

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Runs the target `name` on `input`. A panic that somebody catches on the way is a failure too.
pub fn run(name: &str, input: &[u8]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let _ = PANICS.try_with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    let Some((_, target)) = TARGETS.iter().find(|target| target.0 == name) else {
        panic!("no target {name}")
    };
    PANICS.set(0);
    target(input);
    assert_eq!(PANICS.get(), 0, "something has panicked");
}

/// The program of a target, for libFuzzer.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::run($name, input));
    };
}
