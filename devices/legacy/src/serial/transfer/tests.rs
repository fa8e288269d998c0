use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Access, BusFault};

use super::*;
use crate::serial::uart::Uart16550;

/// How much the receiver of [`Deep`] holds.
const DEPTH: usize = 1000;

/// A UART with a receiver that is far deeper than a 16550's, and always listens. Its state is the typeahead.
#[derive(Default)]
struct Deep {
    rx: VecDeque<u8>,
    thrown: VecDeque<u8>,
    rest: Uart16550,
}

impl Deep {
    fn take(&mut self) -> u8 {
        self.rx.pop_front().unwrap_or(0)
    }

    fn throw(&mut self) -> Written {
        self.thrown = std::mem::take(&mut self.rx);
        Written::Thrown
    }
}

impl Uart for Deep {
    fn read(&mut self, _: Access) -> Result<u64, BusFault> {
        Ok(self.take().into())
    }

    fn write(&mut self, _: Access, _: u64) -> Result<Written, BusFault> {
        Ok(self.throw())
    }

    fn reset(&mut self) {
        self.rx.clear();
    }

    fn take_edge(&mut self) -> bool {
        false
    }

    fn interrupts(&self) -> bool {
        false
    }

    fn rx_room(&self) -> usize {
        DEPTH - self.rx.len()
    }

    fn rx_is_empty(&self) -> bool {
        self.rx.is_empty()
    }

    fn receive(&mut self, input: &[u8]) -> usize {
        let n = input.len().min(self.rx_room());
        self.rx.extend(&input[..n]);
        n
    }

    fn take_thrown(&mut self) -> VecDeque<u8> {
        std::mem::take(&mut self.thrown)
    }

    fn unread(&self) -> usize {
        self.rx.len()
    }

    fn output(&self) -> &[u8] {
        self.rest.output()
    }

    fn output_len(&self) -> usize {
        self.rest.output_len()
    }

    fn output_taken(&mut self, n: usize) {
        self.rest.output_taken(n);
    }

    fn in_burst(&self) -> bool {
        false
    }

    fn save(&self, typeahead: &[u8]) -> SavedState<'static> {
        self.rest.save(typeahead)
    }

    fn restored(&self, state: &SavedState<'_>) -> Result<(Self, Vec<u8>), StateError> {
        let (rest, typeahead) = self.rest.restored(state)?;
        Ok((Self { rest, ..Self::default() }, typeahead))
    }
}

/// A terminal on which somebody types without end: each byte is the next number.
#[derive(Default)]
struct Typist(u8);

impl Line for Typist {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        for byte in &mut *buf {
            // Not the escape key.
            self.0 = (self.0 % 250) + 2;
            *byte = self.0;
        }
        Ok(buf.len())
    }

    fn watch(&self, _: bool, _: bool) -> Pollables {
        Pollables::new()
    }

    fn needs_loop(&self) -> bool {
        true
    }

    fn is_terminal(&self) -> bool {
        true
    }
}

#[test]
fn d2_what_a_deep_receiver_gives_back_has_a_place_and_the_state_can_be_restored() {
    let mut port = Transfer::new(Deep::default(), Box::<Typist>::default(), true);
    port.activity = Activity::Running;
    let mut wanted = Typist::default();
    let mut next = || {
        let mut byte = [0];
        wanted.read(&mut byte).unwrap();
        byte[0]
    };
    for round in 0..20 {
        while port.turn().1 == Turn::Again {}
        assert_eq!(port.typeahead.len() + port.uart.rx.len(), TYPEAHEAD_CAPACITY, "round {round}");
        // The handle for input adds nothing behind it.
        assert_eq!(port.receive(b"x"), 0);
        let written = port.uart.throw();
        port.after_guest(written);
        assert!(port.uart.rx.is_empty() && port.typeahead.len() == TYPEAHEAD_CAPACITY, "round {round}");
        let state = port.uart.save(port.typeahead.make_contiguous());
        let (_, typeahead) = port.uart.restored(&state).unwrap();
        assert_eq!(typeahead, Vec::from(port.typeahead.clone()));
        // Nothing of it is lost.
        for _ in 0..100 {
            port.after_guest(Written::Register);
            assert_eq!(port.uart.take(), next());
        }
    }
}
