use super::*;

#[test]
fn signals_add_up_until_they_are_taken() {
    let event = Event::new().unwrap();
    assert_eq!(event.take().unwrap(), 0);
    event.signal().unwrap();
    event.signal().unwrap();
    assert_eq!(event.take().unwrap(), 2);
    assert_eq!(event.take().unwrap(), 0);
}

#[test]
fn a_full_counter_stays_full() {
    let event = Event::new().unwrap();
    event.0.write(u64::MAX - 1).unwrap();
    event.signal().unwrap();
    assert_eq!(event.take().unwrap(), u64::MAX - 1);
}

#[test]
fn the_descriptor_is_not_inherited() {
    let event = Event::new().unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", event.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
    assert_eq!(flags & 0o2000000, 0o2000000, "close-on-exec");
    assert_eq!(flags & 0o4000, 0o4000, "non-blocking");
}
