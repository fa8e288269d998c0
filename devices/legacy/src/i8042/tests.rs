use super::registers::{ANSWER_CAPACITY, KEYBOARD_CAPACITY};
use super::*;
use crate::testing::{Attachment, attach, attach_quiet, hostile, lives_twice, metric, reset_is_complete};

const DATA: usize = 0;
const COMMAND: usize = 1;
const OBF: u8 = 1;

struct Guest {
    device: I8042,
    machine: Attachment,
}

impl Guest {
    fn new() -> Self {
        let mut device = I8042::new("i8042");
        let machine = attach(&mut device);
        Self { device, machine }
    }

    fn status(&self) -> u8 {
        self.machine.read(COMMAND, 0)
    }

    fn command(&self, command: u8) -> Effect {
        self.machine.write(COMMAND, 0, command)
    }

    fn data(&self, byte: u8) -> Effect {
        self.machine.write(DATA, 0, byte)
    }

    /// All that waits in the output buffer.
    fn drain(&self) -> Vec<u8> {
        std::iter::from_fn(|| (self.status() & OBF != 0).then(|| self.machine.read(DATA, 0))).collect()
    }

    fn ask(&self, command: u8, parameter: Option<u8>) -> Vec<u8> {
        assert_eq!(self.command(command), Effect::None);
        if let Some(parameter) = parameter {
            assert_eq!(self.data(parameter), Effect::None);
        }
        self.drain()
    }

    /// A byte to the keyboard, and what it answers.
    fn keyboard(&self, byte: u8) -> Vec<u8> {
        assert_eq!(self.data(byte), Effect::None);
        self.drain()
    }
}

#[test]
fn linux_probes_the_controller_and_finds_no_mouse() {
    let guest = Guest::new();
    assert_eq!(guest.drain(), []);
    assert_eq!(guest.ask(0xaa, None), [0x55]);
    let config = guest.ask(0x20, None);
    assert_eq!(config, [0x65]);
    assert_ne!(guest.status() & 0x10, 0, "the keyboard is locked");
    // Keyboard off, its interrupt off, while the driver probes.
    assert_eq!(guest.ask(0x60, Some(config[0] & !0x01 | 0x10)), []);
    assert_eq!(guest.ask(0x20, None), [0x74]);
    // i8042_check_aux: the loop-back answer must come (or Linux waits for it) and not be the aux channel's.
    assert_eq!(guest.command(0xd3), Effect::None);
    assert_eq!(guest.data(0x5a), Effect::None);
    assert_eq!(guest.status() & (OBF | 0x20), OBF);
    assert_eq!(guest.drain(), [0x5a]);
    assert_eq!(guest.ask(0xa9, None), [0x01]);
    // On again.
    assert_eq!(guest.ask(0x60, Some(0x65)), []);
    assert_eq!(guest.ask(0xab, None), [0x00]);
}

#[test]
fn linux_accepts_the_keyboard() {
    let guest = Guest::new();
    guest.machine.interrupts();
    for (bytes, answer) in [
        (&[0xf2][..], &[0xfa, 0xab, 0x83][..]),
        (&[0xed, 0x00], &[0xfa, 0xfa]),
        (&[0xf3, 0x00], &[0xfa, 0xfa]),
        (&[0xf4], &[0xfa]),
    ] {
        let got: Vec<u8> = bytes.iter().flat_map(|byte| guest.keyboard(*byte)).collect();
        assert_eq!(got, answer);
        assert_eq!(guest.machine.interrupts(), answer.len() as u64, "one interrupt for each byte");
    }
    assert_eq!(guest.keyboard(0xff), [0xfa, 0xaa]);
    assert_eq!(guest.keyboard(0xf5), [0xfa]);
    assert_eq!(guest.keyboard(0xee), [0xee]);
    assert_eq!(guest.keyboard(0xfe), [0xee], "resend");
    assert_eq!(guest.keyboard(0x00), [0xfe], "no such command");
}

#[test]
fn ctrl_alt_del_in_the_set_that_the_guest_has_chosen() {
    let guest = Guest::new();
    let keyboard = guest.device.keyboard();
    let set_1 = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
    assert!(keyboard.press_ctrl_alt_del());
    assert_eq!(guest.machine.interrupts(), 1);
    assert_eq!(guest.drain(), set_1, "translated");
    guest.ask(0x60, Some(0x25));
    assert!(keyboard.press_ctrl_alt_del());
    assert_eq!(guest.drain(), [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14]);
    assert_eq!([guest.keyboard(0xf0), guest.keyboard(1)], [[0xfa], [0xfa]]);
    assert_eq!([guest.keyboard(0xf0), guest.keyboard(0)], [vec![0xfa], vec![0xfa, 1]]);
    assert!(keyboard.press_ctrl_alt_del());
    assert_eq!(guest.drain(), set_1);
    assert_eq!([guest.keyboard(0xf0), guest.keyboard(3)], [[0xfa], [0xfe]], "there is no set 3");
    assert_eq!(metric(&guest.device, "ctrl_alt_del_presses"), 3);
}

#[test]
fn keys_are_lost_while_the_guest_does_not_read_or_has_disabled_the_keyboard() {
    let guest = Guest::new();
    let keyboard = guest.device.keyboard();
    let typed = (0..1000).filter(|_| keyboard.press_ctrl_alt_del()).count();
    assert_eq!(typed, 2);
    assert_eq!(guest.drain().len(), 16);
    assert_eq!(guest.keyboard(0xf5), [0xfa]);
    assert!(!keyboard.press_ctrl_alt_del());
    assert_eq!(guest.drain(), []);
    assert_eq!(guest.keyboard(0xf4), [0xfa]);
    assert!(keyboard.press_ctrl_alt_del());
    assert_eq!(metric(&guest.device, "lost_ctrl_alt_del_presses"), 999);
}

#[test]
fn a_keyboard_that_is_switched_off_keeps_its_bytes() {
    let guest = Guest::new();
    assert_eq!(guest.command(0xad), Effect::None);
    assert!(guest.device.keyboard().press_ctrl_alt_del());
    assert_eq!((guest.drain(), guest.machine.interrupts()), (vec![], 0));
    assert_eq!(guest.command(0xae), Effect::None);
    assert_eq!(guest.machine.interrupts(), 1);
    assert_eq!(guest.drain().len(), 8);
}

#[test]
fn a_byte_that_waits_interrupts_when_the_interrupt_is_enabled() {
    let guest = Guest::new();
    guest.ask(0x60, Some(0x64));
    assert_eq!(guest.data(0xee), Effect::None);
    assert_eq!(guest.machine.interrupts(), 0);
    assert_eq!(guest.command(0x60), Effect::None);
    assert_eq!(guest.data(0x65), Effect::None);
    assert_eq!(guest.machine.interrupts(), 1);
    assert_eq!(guest.drain(), [0xee]);
}

#[test]
fn reset_by_pulse_and_by_output_port() {
    let guest = Guest::new();
    let reset = Effect::Vm(VmRequest::Reset);
    assert_eq!(guest.command(0xfe), reset);
    assert_eq!(guest.command(0xf0), reset);
    assert_eq!(guest.command(0xff), Effect::None);
    assert_eq!(guest.command(0xd1), Effect::None);
    assert_eq!(guest.data(0xdf), Effect::None, "the A20 gate only");
    assert_eq!(guest.command(0xd1), Effect::None);
    assert_eq!(guest.data(0xfe), reset);
    assert_eq!(metric(&guest.device, "reset_requests"), 3);
}

#[test]
fn the_other_controller_commands() {
    let guest = Guest::new();
    assert_eq!(guest.ask(0xc0, None), [0x80]);
    assert_eq!(guest.ask(0xd0, None), [0x03]);
    assert_eq!(guest.ask(0xd2, Some(0x42)), [0x42]);
    guest.ask(0xa8, None);
    assert_eq!(guest.ask(0x20, None), [0x45]);
    guest.ask(0xa7, None);
    assert_eq!(guest.ask(0x20, None), [0x65]);
    // Nobody is there to take a byte for the mouse.
    assert_eq!(guest.command(0xd4), Effect::None);
    assert_eq!(guest.data(0xf4), Effect::None);
    assert_eq!(guest.status() & 0x61, 0x61);
    assert_eq!(guest.drain(), [0xfe]);
}

#[test]
fn a_command_takes_the_place_of_a_parameter() {
    let guest = Guest::new();
    assert_eq!(guest.command(0xd1), Effect::None);
    assert_eq!(guest.status() & 0x08, 0x08);
    assert_eq!(guest.ask(0x20, None), [0x65]);
    assert_eq!(guest.keyboard(0xee), [0xee]);
    assert_eq!(guest.status() & 0x08, 0);
}

#[test]
fn a_reset_forgets_everything() {
    let mut guest = Guest::new();
    guest.ask(0x60, Some(0x10));
    assert_eq!(guest.command(0x20), Effect::None);
    guest.device.reset().unwrap();
    assert_eq!(guest.drain(), []);
    assert_eq!(guest.ask(0x20, None), [0x65]);
}

#[test]
fn commands_whose_answers_nobody_reads_do_not_pile_up() {
    let guest = Guest::new();
    for _ in 0..10_000 {
        assert_eq!(guest.command(0xaa), Effect::None);
        assert_eq!(guest.data(0xf2), Effect::None);
    }
    assert!(guest.drain().len() <= 1 + ANSWER_CAPACITY + KEYBOARD_CAPACITY);
}

#[test]
fn any_access_is_answered_and_queues_stay_bounded() {
    hostile(
        || I8042::new("i8042"),
        |device, machine| {
            device.keyboard().press_ctrl_alt_del();
            let guest = |port| machine.read(port, 0);
            let bytes = std::iter::from_fn(|| (guest(COMMAND) & OBF != 0).then(|| guest(DATA)));
            assert!(bytes.count() <= 1 + ANSWER_CAPACITY + KEYBOARD_CAPACITY);
        },
    );
}

#[test]
fn a_reset_controller_is_as_new() {
    reset_is_complete(|| I8042::new("i8042"));
}

#[test]
fn a_detached_controller_lets_go_of_its_machine_and_works_in_another() {
    let mut i8042 = I8042::new("i8042");
    let keyboard = i8042.keyboard();
    assert!(!keyboard.press_ctrl_alt_del(), "there is no guest yet");
    lives_twice(&mut i8042, |_, machine| {
        assert_eq!(machine.read(COMMAND, 0) & OBF, 0, "something is left from before");
        assert!(keyboard.press_ctrl_alt_del());
        assert_eq!(machine.interrupts(), 1);
        assert_eq!(machine.read(DATA, 0), 0x1d);
    });
    assert!(!keyboard.press_ctrl_alt_del());
}

#[test]
fn keys_pressed_while_paused_are_lost() {
    let mut device = I8042::new("i8042");
    let machine = attach_quiet(&mut device);
    let keyboard = device.keyboard();
    assert!(!keyboard.press_ctrl_alt_del());
    device.resume().unwrap();
    device.quiesce().unwrap();
    assert!(!keyboard.press_ctrl_alt_del());
    assert_eq!((machine.read(COMMAND, 0) & OBF, machine.interrupts()), (0, 0));
    assert_eq!(metric(&device, "lost_ctrl_alt_del_presses"), 2);
}
