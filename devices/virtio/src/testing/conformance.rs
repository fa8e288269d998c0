//! What every device owes a driver, whatever the device does: the rows that guard against a known
//! way to break a VMM carry its number. Each takes a factory of fresh devices.
//!
//! A queue is *eager* if the device takes its chains without anything happening on the host: there, broken
//! rings must be found at once. On the others (receive queues) they must do no harm.

mod activation;
mod life;
mod pci;
mod queues;
mod registers;
mod rings;
mod state;

use ossature_bus::DeviceEvent;

use super::{Life, TestDriver, Transport, with};
use crate::LocalDevice;
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};

pub use activation::*;
pub use life::*;
pub use pci::*;
pub use queues::*;
pub use registers::*;
pub use rings::*;
pub use state::*;

/// Makes fresh devices of one kind.
pub type Factory<'a> = &'a dyn Fn() -> Box<dyn LocalDevice>;

/// Runs a row of the suite, where devices sit behind `transport` and lead `life`.
pub fn check(transport: Transport, life: Life, row: fn(Factory), factory: Factory) {
    with(transport, life, || row(factory));
}

/// Makes a module of tests, one for each row of the suite: `conformance_tests!(rng, Rng::new)`. The second
/// argument is called without arguments for each device that a test needs.
///
/// In the module there is one for each transport, `mmio` and `pci`, with the rows themselves, and with two modules in
/// which devices have more of a life: in `restored`, they are saved, reset and restored each time a driver has started
/// them; in `plugged`, they were unplugged and plugged in again, on PCI while the guest runs, before a driver finds them.
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, $factory:expr) => {
        mod $name {
            #[allow(unused_imports)] // the factory may name what the surrounding module has
            use super::*;

            // One for all rows: what is generic in the device is compiled once.
            fn factory_of_devices()
            -> ::std::boxed::Box<dyn Fn() -> ::std::boxed::Box<dyn $crate::LocalDevice>> {
                let factory = $factory;
                ::std::boxed::Box::new(move || ::std::boxed::Box::new(factory()))
            }

            $crate::__conformance_rows!(mmio, Mmio; [
                every_kind_of_interrupt,
                g2_queue_ready_is_cleared,
                g3_interrupt_status_is_true,
            ]);
            $crate::__conformance_rows!(pci, Pci; [
                every_choice_of_vectors,
                surprise_removal,
                pci_window_into_the_bars,
                g3_isr_status_is_true,
                a5_vectors_out_of_range,
                a5_vectors_change_while_queues_run,
                a6_table_and_pending_bits,
                b7_bars_move_while_the_device_works,
            ]);
        }
    };
}

/// The rows of one transport: those that it alone has, and those that all have.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_rows {
    ($module:ident, $transport:ident; [$($own:ident),* $(,)?]) => {
        $crate::__conformance_rows!(module $module, $transport; [
            $($own,)*
            ring_reset_while_others_run,
            ring_reset_needs_its_feature,
            ring_reset_under_load,
            save_and_restore_mid_io,
            detached_and_attached_again,
            d2_mutated_states,
            e1_a_panic_fails_the_device_alone,
            g1_status_steps_in_one_write,
            reset_in_mid_flight,
            quiesce_and_resume,
            config_space_is_bounded,
            registers_under_load,
            kicks_before_the_driver_is_ready,
            kick_storm,
            failed_driver_needs_a_reset,
            a1_queue_registers_before_features_ok,
            a1_queue_registers_after_ready,
            a1_queue_registers_after_driver_ok,
            a2_duplicate_heads,
            a3_available_index_jumps,
            a4_hostile_chains,
            a5_queue_select_out_of_range,
            a7_notify_of_no_queue,
            a8_one_descriptor_for_ever,
            a10_used_length_is_bounded,
            a11_unoffered_features,
            a13_all_status_pairs,
            a14_activation_fails_in_the_device,
            a14_activation_fails_in_the_runtime,
            a16_ring_rewritten_while_in_use,
            a18_no_kick_or_interrupt_is_lost,
        ]);
    };
    (module $module:ident, $transport:ident; $rows:tt) => {
        mod $module {
            use super::factory_of_devices;

            $crate::__conformance_rows!(rows $transport, Live; $rows);

            mod restored {
                use super::factory_of_devices;

                $crate::__conformance_rows!(rows $transport, Restored; $rows);
            }

            mod plugged {
                use super::factory_of_devices;

                $crate::__conformance_rows!(rows $transport, Plugged; $rows);
            }
        }
    };
    (rows $transport:ident, $life:ident; [$($row:ident),* $(,)?]) => {$(
        #[test]
        fn $row() {
            use $crate::testing::{Life, Transport, conformance};
            conformance::check(Transport::$transport, Life::$life, conformance::$row, &factory_of_devices());
        }
    )*};
}

/// Offers a chain that any device must cope with.
fn probe(driver: &mut TestDriver, queue: u16) {
    driver.request(queue, &[&[0; 16]], &[64]);
}

/// The queues from which the device takes chains at once.
fn eager(factory: Factory) -> Vec<u16> {
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    (0..driver.queue_count())
        .filter(|&queue| {
            probe(&mut driver, queue);
            // Whether or not the device asks for it: one that forgets to ask is not to pass for one that waits.
            driver.kick_register(queue.into());
            driver.used(queue).is_some()
        })
        .collect()
}

/// Numbers of queues that do not exist, as far as the transport has room for them.
fn no_queues(driver: &TestDriver) -> impl Iterator<Item = u32> {
    let (queues, last) = (u32::from(driver.queue_count()), driver.registers().last_queue());
    [queues, queues + 1, 0xffff, 0x1_0000, u32::MAX].into_iter().filter(move |queue| *queue <= last)
}

/// The device works: each eager queue gives a chain back.
fn works(driver: &mut TestDriver, eager: &[u16]) {
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for &queue in eager {
        probe(driver, queue);
        driver.kick(queue);
        driver.wait_used(queue);
    }
}

/// What the device has reported beside register writes that it ignored.
fn broken(driver: &TestDriver) -> Vec<DeviceEvent> {
    let mut reports = driver.reports();
    reports.retain(|event| !matches!(event, DeviceEvent::Ignored { .. }));
    reports
}

/// The device has said that its driver broke it, once and on every channel.
fn needs_reset(driver: &TestDriver) {
    assert_eq!(driver.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK | NEEDS_RESET);
    assert!(driver.registers().take_config_interrupt(), "nobody tells the driver");
    assert!(matches!(broken(driver)[..], [DeviceEvent::NeedsReset { .. }]), "{:?}", driver.reports());
}

/// Offers to, kicks and pumps every queue; how many chains each gave back, in-flight ones included.
fn serve(driver: &mut TestDriver) -> Vec<usize> {
    let queues = driver.queue_count();
    for queue in 0..queues {
        for _ in 0..3 {
            probe(driver, queue);
        }
        driver.kick(queue);
    }
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    driver.pump();
    (0..queues).map(|queue| std::iter::from_fn(|| driver.used(queue)).count()).collect()
}
