use proptest::prelude::*;

use super::*;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

/// A UART that a driver has opened: FIFO on, receive interrupt on, RTS set.
fn open() -> Uart16550 {
    let mut uart = Uart16550::new();
    uart.write(FCR, 0x07);
    uart.write(IER, IER_RX);
    uart.write(MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
    assert!(!uart.take_edge());
    uart
}

/// Linux' interrupt handler: goes on until no condition holds.
fn handle(uart: &mut Uart16550) -> Vec<u8> {
    let mut got = Vec::new();
    uart.write(LCR, 0x03);
    for _ in 0..10_000 {
        if uart.read(IIR) & IIR_NONE != 0 {
            uart.take_edge();
            return got;
        }
        while uart.read(LSR) & LSR_DATA_READY != 0 {
            got.push(uart.read(DATA));
        }
        uart.take_edge();
    }
    panic!("the interrupt does not go away");
}

#[test]
fn linux_finds_a_16550a() {
    let mut uart = Uart16550::new();
    // autoconfig(): which interrupt enables exist.
    uart.write(IER, 0);
    assert_eq!(uart.read(IER), 0);
    uart.write(IER, 0xff);
    assert_eq!(uart.read(IER), 0x0f);
    uart.write(IER, 0);
    // Loopback: RTS drives CTS, OUT2 drives DCD.
    uart.write(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
    assert_eq!(uart.read(MSR) & 0xf0, MSR_DCD | MSR_CTS);
    uart.write(MCR, 0);
    // No enhanced registers behind LCR = 0xbf, FIFO bits in IIR.
    uart.write(LCR, 0xbf);
    uart.write(FCR, 0);
    uart.write(LCR, 0);
    uart.write(FCR, 1);
    assert_eq!(uart.read(IIR) >> 6, 3);
    uart.write(LCR, 0xbf);
    assert_ne!(uart.read(2), 0);
    uart.write(LCR, 0x03);
    // serial8250_do_startup(): the transmitter's interrupt comes each time it is enabled.
    for _ in 0..2 {
        uart.write(IER, IER_TX);
        assert_eq!(uart.read(IIR) & 0x0f, IIR_TX);
        uart.write(IER, 0);
    }
    assert_eq!(uart.read(LSR), LSR_THR_EMPTY | LSR_IDLE);
}

#[test]
fn stored_registers() {
    let mut uart = Uart16550::new();
    for value in 0..=255 {
        uart.write(SCR, value);
        assert_eq!(uart.read(SCR), value);
    }
    assert_eq!(uart.read(LCR), 0x03);
    uart.write(LCR, LCR_DLAB | 0x03);
    assert_eq!([uart.read(0), uart.read(1)], [12, 0]);
    uart.write(0, 1);
    uart.write(1, 2);
    assert_eq!([uart.read(0), uart.read(1)], [1, 2]);
    assert_eq!(uart.output(), b"");
    uart.write(LCR, 0x03);
    assert_eq!(uart.read(1), 0);
    uart.write(MCR, 0xff);
    assert_eq!(uart.read(MCR), 0x1f);
    uart.write(MCR, 0);
    assert_eq!(uart.read(MSR), MSR_CTS | MSR_DSR | MSR_DCD);
}

#[test]
fn received_bytes_interrupt_once_and_are_read_in_order() {
    let mut uart = open();
    assert_eq!(uart.receive(b"abc"), 3);
    assert!(uart.take_edge());
    assert_eq!(uart.receive(b"d"), 1);
    assert!(!uart.take_edge());
    assert_eq!(uart.read(IIR), IIR_FIFO | IIR_RX);
    assert_eq!(handle(&mut uart), b"abcd");
    assert_eq!(uart.receive(b"e"), 1);
    assert!(uart.take_edge());
}

#[test]
fn a_byte_that_came_while_interrupts_were_off_interrupts_when_they_are_on() {
    let mut uart = open();
    // Linux' console masks all interrupts while it prints.
    uart.write(IER, 0);
    uart.take_edge();
    uart.receive(b"x");
    assert!(!uart.take_edge());
    uart.write(IER, IER_RX);
    assert!(uart.take_edge());
}

#[test]
fn nothing_is_received_before_the_guest_listens() {
    let mut uart = Uart16550::new();
    assert_eq!(uart.receive(b"x"), 0);
    uart.write(IER, IER_RX);
    assert_eq!(uart.receive(b"xy"), 1, "without FIFO");
    assert_eq!(uart.read(DATA), b'x');
    uart.write(IER, 0);
    uart.write(MCR, MCR_RTS);
    uart.write(FCR, 1);
    assert_eq!(uart.receive(b"xy"), 2);
    uart.write(MCR, MCR_RTS | MCR_LOOP);
    assert_eq!(uart.receive(b"z"), 0);
}

#[test]
fn the_receiver_is_bounded_and_cleared_by_fcr() {
    let mut uart = open();
    assert_eq!(uart.receive(&[7; 1000]), RX_CAPACITY);
    assert_eq!(uart.rx_room(), 0);
    assert_eq!(uart.receive(b"x"), 0);
    uart.write(FCR, FCR_ENABLE | FCR_CLEAR_RX);
    assert_eq!(uart.read(LSR) & LSR_DATA_READY, 0);
    assert_eq!(uart.read(DATA), 0);
    uart.receive(b"x");
    uart.write(FCR, 0);
    assert!(uart.rx_is_empty());
}

#[test]
fn each_burst_of_output_makes_one_interrupt() {
    let mut uart = open();
    uart.write(IER, IER_RX | IER_TX);
    assert!(uart.take_edge());
    for _ in 0..3 {
        assert_eq!(handle(&mut uart), b"");
        let edges = (0..16)
            .filter(|byte| {
                assert_eq!(uart.write(DATA, *byte), Written::Sent);
                uart.take_edge()
            })
            .count();
        assert_eq!(edges, 1);
        uart.output_taken(16);
    }
}

#[test]
fn a_full_queue_is_a_busy_transmitter_until_half_of_it_is_free() {
    let mut uart = open();
    uart.write(IER, IER_TX);
    let mut sent = 0;
    while uart.read(LSR) & LSR_THR_EMPTY != 0 {
        // What a driver writes after it has looked once.
        for _ in 0..TX_BURST {
            assert_eq!(uart.write(DATA, 1), Written::Sent);
            sent += 1;
        }
        handle(&mut uart);
    }
    assert_eq!(sent, TX_CAPACITY);
    assert_eq!(uart.write(DATA, 2), Written::Overflow);
    uart.output_taken(TX_CAPACITY / 2 - 1);
    assert!(!uart.take_edge());
    assert_eq!(uart.read(LSR) & (LSR_THR_EMPTY | LSR_IDLE), 0);
    uart.output_taken(1);
    assert!(uart.take_edge());
    assert_eq!(uart.read(LSR) & (LSR_THR_EMPTY | LSR_IDLE), LSR_THR_EMPTY | LSR_IDLE);
}

#[test]
fn loopback_stays_inside_and_overruns() {
    let mut uart = open();
    uart.write(MCR, MCR_LOOP);
    for byte in 0..RX_CAPACITY as u8 + 1 {
        assert_eq!(uart.write(DATA, byte), Written::Register);
    }
    assert_eq!(uart.output(), b"");
    uart.write(IER, IER_LINE);
    assert!(uart.take_edge());
    assert_eq!(uart.read(IIR) & 0x0f, IIR_LINE);
    assert_eq!(uart.read(LSR) & LSR_OVERRUN, LSR_OVERRUN);
    assert_eq!(uart.read(LSR) & LSR_OVERRUN, 0);
    assert_eq!(uart.read(DATA), 0);
    assert_eq!(uart.read(DATA), 1);
}

#[test]
fn a_reset_keeps_only_what_has_been_sent() {
    let mut uart = open();
    uart.receive(b"in");
    uart.write(DATA, b'o');
    uart.write(SCR, 9);
    uart.reset();
    assert_eq!(uart.output(), b"o");
    assert_eq!([uart.read(SCR), uart.read(IER), uart.read(DATA), uart.read(MCR)], [0; 4]);
}

proptest! {
    /// Whatever guest and host do, an enabled condition that holds has raised an edge, and a handler that
    /// answers each edge leaves none behind.
    #[test]
    fn no_interrupt_is_lost_and_no_queue_grows(
        steps in prop::collection::vec((0u8..12, any::<u8>(), any::<bool>()), 1..400),
    ) {
        let mut uart = Uart16550::new();
        for (what, value, answers) in steps {
            match what {
                0..=7 => { uart.write(what, value); }
                8 => { uart.read(value % 8); }
                9 => { uart.receive(&vec![value; value.into()]); }
                10 => { uart.output_taken(value.into()); }
                _ => { uart.read(IIR); }
            }
            if uart.take_edge() && answers {
                handle(&mut uart);
                prop_assert_eq!(uart.pending(), 0);
            }
            prop_assert_eq!(uart.pending() & !uart.raised, 0);
            prop_assert!(uart.rx.len() <= RX_CAPACITY && uart.tx.len() <= TX_CAPACITY);
        }
    }
}
