//! The saved form of these devices, byte by byte: what was saved once can be restored for as long as its version
//! counts as known. `golden/` has the payload of each device and the file of all of them; they are never changed, a new
//! version gets files of its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests, too, may panic

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ossature_bus::state::SavedState;
use ossature_bus::state_file::{self, Architecture, StateFile};
use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, Device, DeviceState, Effect, Handover, Mmio, Size};
use ossature_legacy::{Escape, FwCfg, GenerationId, I8042, Pl031, Rtc, Serial, SerialPort, VmGenId, backend};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// The bytes of a golden file: two hexadecimal digits each, and `#` before what is for the reader.
fn golden(text: &str) -> Vec<u8> {
    let digits = text.lines().flat_map(|line| line.split('#').next().unwrap().split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    bytes.chunks(16).map(|bytes| line(bytes).trim_end().to_owned() + "\n").collect()
}

fn assert_golden(bytes: &[u8], text: &str) {
    assert!(bytes == golden(text), "the bytes have changed:\n{}", hex(bytes));
}

/// A device in a machine that has not yet started, and what answers the guest.
fn attach(device: &mut dyn Device) -> Vec<Arc<dyn Mmio>> {
    let mut board = TestBoard::default();
    board.attach(device).unwrap();
    board.registers().iter().map(|registers| registers.port().unwrap()).collect()
}

/// The same in a machine that runs.
fn start(device: &mut dyn Device) -> Vec<Arc<dyn Mmio>> {
    let ports = attach(device);
    device.resume().unwrap();
    ports
}

fn read(port: &Arc<dyn Mmio>, offset: u64) -> u8 {
    port.read(Access { offset, size: Size::B1 }).unwrap() as u8
}

fn write(port: &Arc<dyn Mmio>, offset: u64, value: u8) {
    assert_eq!(port.write(Access { offset, size: Size::B1 }, value.into()), Ok(Effect::None));
}

fn saved(device: &mut dyn Device) -> SavedState<'static> {
    device.quiesce().unwrap();
    match device.save().unwrap() {
        DeviceState::Saved(handover) => handover.state,
        other => panic!("{other:?}"),
    }
}

/// What a user types into, and the raw terminal on which it arrives.
fn terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut modes = tcgetattr(&terminal).unwrap();
    modes.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &modes).unwrap();
    (master.into(), terminal)
}

/// A port whose driver has enabled all interrupts, with 64 bytes in the receiver, `more` typed ahead, and `out` on its
/// way to a reader that does not read.
fn serial() -> SavedState<'static> {
    let (mut ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(b"#").is_ok() {}
    let (mut user, input) = terminal();
    let line = backend::fds(Some(input), Some(ours.into())).unwrap();
    let (send, keys) = mpsc::channel();
    let line = line.with_escape_keys(move |key| send.send(key).unwrap());
    let mut device = Serial::new("com1", SerialPort::COM1, line);
    let port = &start(&mut device)[0];
    for (offset, value) in
        [(2, 0x07), (3, 0x80), (0, 0x01), (1, 0x02), (3, 0x1b), (4, 0x0b), (7, 0x5a), (1, 0x0f)]
    {
        write(port, offset, value);
    }
    user.write_all(&[b'x'; 64]).unwrap();
    user.write_all(b"more").unwrap();
    for byte in b"out" {
        write(port, 0, *byte);
    }
    // The port's own thread reads the line; the key says that all before it is there.
    user.write_all(b"\x01h").unwrap();
    assert_eq!(keys.recv().unwrap(), Escape::Help);
    saved(&mut device)
}

/// A controller that is about to be told its configuration, with an echo in the output buffer, an answer of its own
/// behind that, and Ctrl-Alt-Del behind both.
fn i8042() -> SavedState<'static> {
    let mut device = I8042::new("i8042");
    let ports = start(&mut device);
    write(&ports[0], 0, 0xee);
    write(&ports[1], 0, 0xd4);
    write(&ports[0], 0, 0xff);
    assert!(device.keyboard().press_ctrl_alt_del());
    write(&ports[0], 0, 0xed);
    write(&ports[1], 0, 0x60);
    saved(&mut device)
}

/// A clock that the guest has set to an hour less than the host's, in binary, with a byte in its RAM; it has been told of
/// an update that it has not yet looked at.
fn rtc() -> SavedState<'static> {
    let later = Arc::new(AtomicU64::new(0));
    let host = later.clone();
    let mut device =
        Rtc::with_clock("rtc", move || now() + Duration::from_nanos(host.load(Ordering::Relaxed)));
    let port = &start(&mut device)[0];
    for (index, value) in [(0x0b, 0x06), (0x0b, 0x86), (0x04, 11), (0x0b, 0x06), (0x7f, 0xa5), (0x38, 0x5a)] {
        write(port, 0, index);
        write(port, 1, value);
    }
    for index in [0x0c, 0x0a] {
        write(port, 0, index);
        read(port, 1);
    }
    for now in [0, 1_500_000_000] {
        later.store(now, Ordering::Relaxed);
        for (offset, value) in [(0, 0x0b), (1, 0x16), (0, 0x0a)] {
            write(port, offset, value);
        }
    }
    saved(&mut device)
}

/// A clock that the guest has set to an hour less than the host's; its alarm, a second later, is pending.
fn pl031() -> SavedState<'static> {
    let later = Arc::new(AtomicU64::new(0));
    let host = later.clone();
    let mut device =
        Pl031::with_clock("rtc", move || now() + Duration::from_secs(host.load(Ordering::Relaxed)));
    let port = &start(&mut device)[0];
    let hour_ago = 1_709_210_096 - 3600;
    for (offset, value) in [(0x08, hour_ago), (0x04, hour_ago + 1), (0x10, 1)] {
        assert_eq!(port.write(Access { offset, size: Size::B4 }, value), Ok(Effect::None));
    }
    later.store(2, Ordering::Relaxed);
    assert_eq!(port.read(Access { offset: 0x18, size: Size::B4 }), Ok(1));
    saved(&mut device)
}

/// A generation whose guest, which is paused, has not been told of it.
fn generation() -> SavedState<'static> {
    let mut device = VmGenId::new("generation", GenerationId([0; 16]));
    start(&mut device);
    device.quiesce().unwrap();
    device.generation().set(GenerationId(*b"0123456789abcdef")).unwrap();
    saved(&mut device)
}

/// Two files, of which the guest has read a part of one, and half of an address for DMA.
fn fw_cfg() -> (FwCfg, SavedState<'static>) {
    let device = || FwCfg::new("fw-cfg").file("opt/a", "contents").unwrap().file("opt/folder/b", "").unwrap();
    let mut first = device();
    let port = &start(&mut first)[0];
    let write = |offset, size, value| port.write(Access { offset, size }, value).unwrap();
    assert_eq!(write(0, Size::B2, 0x4020), Effect::None);
    assert_eq!(write(4, Size::B4, 0x0403_0201), Effect::None);
    assert_eq!([read(port, 1), read(port, 1)], *b"co");
    (device(), saved(&mut first))
}

/// 29 February 2024, 12:34:56 UTC.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_709_210_096)
}

/// A clock when that has been saved.
fn clock() -> Rtc {
    Rtc::with_clock("rtc", || now() + Duration::from_millis(1500))
}

const SERIAL: &str = include_str!("golden/serial-1.hex");
const I8042_: &str = include_str!("golden/i8042-1.hex");
const RTC: &str = include_str!("golden/rtc-2.hex");
const PL031: &str = include_str!("golden/pl031-1.hex");
const GENERATION: &str = include_str!("golden/generation-1.hex");
const FW_CFG: &str = include_str!("golden/fw-cfg-1.hex");
const MACHINE: &str = include_str!("golden/machine-2.hex");
/// Of a clock without interrupts.
const MACHINE_1: &str = include_str!("golden/machine-1.hex");
const RTC_1: &str = include_str!("golden/rtc-1.hex");

#[test]
fn each_devices_payload_is_the_golden_one() {
    for (state, kind, version, text) in [
        (serial(), "ossature.serial16550", 1, SERIAL),
        (i8042(), "ossature.i8042", 1, I8042_),
        (rtc(), "ossature.rtc", 2, RTC),
        (pl031(), "ossature.pl031", 1, PL031),
        (generation(), "ossature.vmgenid", 1, GENERATION),
        (fw_cfg().1, "ossature.fw_cfg", 1, FW_CFG),
    ] {
        assert_eq!((&*state.kind, state.version), (kind, version));
        assert_golden(&state.payload, text);
    }
}

#[test]
fn the_file_of_all_devices_is_the_golden_one() {
    let (serial, i8042, rtc) = (serial(), i8042(), rtc());
    let mut file = Vec::new();
    let sections = [("com1", &serial), ("i8042", &i8042), ("rtc", &rtc)];
    state_file::write(&mut file, Architecture::X86_64, &sections).unwrap();
    assert_golden(&file, MACHINE);
}

#[test]
fn the_golden_file_is_restored() {
    is_restored(MACHINE);
}

#[test]
fn g11_a_file_from_before_the_clock_had_interrupts_is_restored() {
    is_restored(MACHINE_1);
    let file = golden(MACHINE_1);
    let file = StateFile::parse(&file, Architecture::X86_64).unwrap();
    assert_eq!(file.get("rtc").unwrap().payload, golden(RTC_1));
}

fn is_restored(text: &str) {
    let file = golden(text);
    let file = StateFile::parse(&file, Architecture::X86_64).unwrap();
    assert_eq!(file.iter().map(|(id, _)| id).collect::<Vec<_>>(), ["com1", "i8042", "rtc"]);

    let mut com1 = Serial::new("com1", SerialPort::COM1, backend::none());
    let mut i8042 = I8042::new("i8042");
    let mut rtc = clock();
    let devices: [&mut dyn Device; 3] = [&mut com1, &mut i8042, &mut rtc];
    let ports = devices.map(|device| {
        let ports = attach(device);
        let state = file.get(device.id()).unwrap();
        device.restore(Handover::new(state.clone().into_owned())).unwrap();
        let again = saved(device);
        if again.version == state.version {
            assert_eq!(again, *state);
        }
        device.resume().unwrap();
        ports
    });

    let [com1, i8042, rtc] = ports;
    let com1 = &com1[0];
    assert_eq!([1, 2, 3, 4, 7].map(|offset| read(com1, offset)), [0x0f, 0xc4, 0x1b, 0x0b, 0x5a]);
    let received: Vec<_> = (0..).take_while(|_| read(com1, 5) & 1 != 0).map(|_| read(com1, 0)).collect();
    assert_eq!(received, [&[b'x'; 64][..], b"more"].concat());
    write(com1, 3, 0x80);
    assert_eq!([read(com1, 0), read(com1, 1)], [1, 2]);

    // The parameter that the command waits for: the configuration with the keyboard's interrupt off.
    write(&i8042[0], 0, 0x44);
    let typed: Vec<_> =
        (0..).take_while(|_| read(&i8042[1], 0) & 1 != 0).map(|_| read(&i8042[0], 0)).collect();
    assert_eq!(typed, [0xee, 0xfe, 0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d, 0xfa]);

    let rtc = &rtc[0];
    let register = |index| {
        write(rtc, 0, index);
        read(rtc, 1)
    };
    assert_eq!(register(0x0a), 0x26);
    assert_eq!([0x04, 0x02, 0x00, 0x7f, 0x38].map(register), [11, 34, 57, 0xa5, 0x5a]);
}

#[test]
fn a_golden_arm_clock_is_restored() {
    let mut clock = Pl031::with_clock("rtc", || now() + Duration::from_secs(10));
    let port = &attach(&mut clock)[0];
    clock.restore(Handover::new(SavedState::new("ossature.pl031", 1, golden(PL031)))).unwrap();
    let hour_ago = 1_709_210_096 - 3600;
    let registers = [0x00, 0x04, 0x08, 0x10, 0x18];
    let found = registers.map(|offset| port.read(Access { offset, size: Size::B4 }).unwrap());
    assert_eq!(found, [hour_ago + 10, hour_ago + 1, hour_ago, 1, 1]);
}

#[test]
fn a_golden_generation_and_files_are_restored() {
    let golden = |kind: &'static str, text| Handover::new(SavedState::new(kind, 1, golden(text)));
    let mut moved = VmGenId::new("generation", GenerationId([0; 16])).keep_when_restored();
    let mut clone = VmGenId::new("generation", GenerationId([1; 16]));
    for (device, id) in [(&mut moved, b"0123456789abcdef"), (&mut clone, &[1; 16])] {
        attach(device);
        device.restore(golden("ossature.vmgenid", GENERATION)).unwrap();
        assert_eq!(device.generation().get(), GenerationId(*id));
    }
    let (mut device, _) = fw_cfg();
    let port = &attach(&mut device)[0];
    device.restore(golden("ossature.fw_cfg", FW_CFG)).unwrap();
    assert_eq!([(); 7].map(|()| read(port, 1)), *b"ntents\0");
}

#[test]
fn d2_no_byte_of_the_golden_file_can_be_changed_or_cut_off() {
    let file = golden(MACHINE);
    let parse = |file: &[u8]| StateFile::parse(file, Architecture::X86_64).map(|_| ());
    for at in 0..file.len() {
        for value in [0, 1, 0xff, file[at].wrapping_sub(1), file[at].wrapping_add(1)] {
            let mut changed = file.clone();
            changed[at] = value;
            assert_eq!(parse(&changed).is_ok(), changed == file, "{value:#x} at {at}");
        }
        assert!(parse(&file[..at]).is_err(), "cut at {at}");
    }
}
