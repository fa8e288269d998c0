use super::*;

fn message(f: impl FnOnce()) -> String {
    Panic::catch(f).unwrap_err().to_string()
}

#[test]
fn a_value_is_passed_on_and_a_panic_is_told() {
    assert_eq!(Panic::catch(|| 7), Ok(7));
    assert_eq!(message(|| panic!("part of the test")), "part of the test");
    assert_eq!(message(|| panic!("part of the test {}", 2)), "part of the test 2");
    assert_eq!(message(|| std::panic::panic_any(3)), "a panic without a text");
}

/// Panics when it is dropped, with itself once more.
struct Bomb(u8);

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some(left) = self.0.checked_sub(1) {
            std::panic::panic_any(Bomb(left));
        }
    }
}

#[test]
fn e1_a_payload_that_panics_when_it_is_dropped_ends_here() {
    for left in 0..3 {
        assert_eq!(message(|| std::panic::panic_any(Bomb(left))), "a panic without a text");
    }
}
