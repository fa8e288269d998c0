use super::*;

/// A reader whose copies are clones.
struct Copied<T>(T);

impl<T: Clone> From<&T> for Copied<T> {
    fn from(value: &T) -> Self {
        Self(value.clone())
    }
}

fn reader<T: Clone>(publisher: &Arc<Publisher<T>>) -> Reader<T, Copied<T>> {
    Reader::new(publisher.clone())
}

#[test]
fn a_reader_has_the_newest_value() {
    let publisher = Arc::new(Publisher::new(1));
    let mut reader = reader(&publisher);
    assert_eq!(reader.get().0, 1);
    publisher.publish(2);
    publisher.publish(3);
    assert_eq!(reader.get().0, 3);
    assert_eq!(publisher.with(|value| *value), 3);
}

#[test]
fn a_generation_is_passed_when_each_reader_has_come_so_far_or_gone() {
    let publisher = Arc::new(Publisher::new(()));
    let mut first = reader(&publisher);
    let second = reader(&publisher);
    assert!(publisher.is_passed(0));
    let generation = publisher.publish(());
    let mut late = reader(&publisher);
    assert!(!publisher.is_passed(generation));
    first.get();
    assert!(!publisher.is_passed(generation));
    drop(second);
    assert!(publisher.is_passed(generation));
    let next = publisher.publish(());
    assert!(publisher.is_passed(generation) && !publisher.is_passed(next));
    first.get();
    late.get();
    assert!(publisher.is_passed(next));
}

#[test]
fn values_are_dropped_when_their_generation_is_passed() {
    let value = Arc::new(());
    let publisher = Arc::new(Publisher::new(value.clone()));
    let mut reader = reader(&publisher);
    publisher.publish(Arc::new(()));
    assert_eq!(Arc::strong_count(&value), 2);
    reader.get();
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn waiting_ends_when_the_last_reader_passes_or_goes() {
    for go in [false, true] {
        let publisher = Arc::new(Publisher::new(()));
        let mut reader = reader(&publisher);
        let generation = publisher.publish(());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| publisher.wait(generation));
            while publisher.waiting.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(!waiter.is_finished());
            if !go {
                reader.get();
                assert!(waiter.join().is_ok());
            }
            drop(reader);
        });
        assert!(publisher.is_passed(generation));
    }
}
