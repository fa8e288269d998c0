//! What the drivers of a thread do with their devices beyond what a test writes: the transport that they sit behind,
//! and what has happened to them by the time they have been started.

use std::cell::Cell;

/// The transport between a driver and its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// virtio-mmio.
    #[default]
    Mmio,
    /// virtio-pci.
    Pci,
}

/// What has happened to a device when its driver has started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Life {
    /// Nothing.
    #[default]
    Live,
    /// It was saved, reset and restored as soon as the driver had started it.
    Restored,
    /// It was removed from a machine that runs, and plugged in again.
    Plugged,
}

thread_local! {
    static MODE: Cell<(Transport, Life)> = const { Cell::new((Transport::Mmio, Life::Live)) };
}

/// The transport of this thread's new drivers.
pub(super) fn transport() -> Transport {
    MODE.get().0
}

/// What happens to the devices of this thread's drivers.
pub(super) fn life() -> Life {
    MODE.get().1
}

/// Runs `test`, whose drivers, as far as they are made by this thread, sit behind `transport` and lead `life`.
pub fn with(transport: Transport, life: Life, test: impl FnOnce()) {
    /// Puts back what was before, also if the test fails.
    struct Restore((Transport, Life));
    impl Drop for Restore {
        fn drop(&mut self) {
            MODE.set(self.0);
        }
    }
    let _restore = Restore(MODE.replace((transport, life)));
    test();
}

/// Runs `test` once for each transport, with drivers that sit behind it.
pub fn on_each_transport(test: impl Fn()) {
    for transport in [Transport::Mmio, Transport::Pci] {
        // Shown if the test fails.
        eprintln!("transport: {transport:?}");
        with(transport, Life::Live, &test);
    }
}
