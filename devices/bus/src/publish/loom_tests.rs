//! Every interleaving of readers, a publisher and a waiter.

use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::*;

/// A value that knows whether somebody still uses it or a copy, and must not be used when it is retired.
struct Value {
    number: u64,
    retired: Arc<AtomicBool>,
}

impl Value {
    fn new(number: u64) -> (Self, Arc<AtomicBool>) {
        let retired = Arc::new(AtomicBool::new(false));
        (Self { number, retired: retired.clone() }, retired)
    }

    fn read(&self) -> u64 {
        assert!(!self.retired.load(Ordering::Relaxed), "a value was read after its retirement");
        self.number
    }
}

impl From<&Value> for Value {
    fn from(value: &Value) -> Self {
        value.read();
        Self { number: value.number, retired: value.retired.clone() }
    }
}

fn reader(publisher: &Arc<Publisher<Value>>) -> Reader<Value, Value> {
    Reader::new(publisher.clone())
}

fn setup() -> (Arc<Publisher<Value>>, Arc<AtomicBool>) {
    let (value, retired) = Value::new(0);
    (Arc::new(Publisher::new(value)), retired)
}

/// One reader in all interleavings; two in those with up to two preemptions, which are already many.
fn model(readers: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = (readers > 1).then_some(2);
    model.check(f);
}

#[test]
fn loom_nobody_reads_a_value_after_the_wait() {
    for count in [1, 2] {
        model(count, move || {
            let (publisher, retired) = setup();
            let readers: Vec<_> = (0..count)
                .map(|_| {
                    let mut reader = reader(&publisher);
                    thread::spawn(move || {
                        let first = reader.get().read();
                        assert!(reader.get().read() >= first);
                    })
                })
                .collect();
            let generation = publisher.publish(Value::new(1).0);
            publisher.wait(generation);
            retired.store(true, Ordering::Relaxed);
            assert_eq!(Arc::strong_count(&retired), 1, "a reader still holds the value");
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }
}

/// A reader that lives on: the wait ends because it has passed, not because it is gone.
#[test]
fn loom_a_reader_that_passes_wakes_the_waiter() {
    model(1, || {
        let (publisher, retired) = setup();
        let mut reader = reader(&publisher);
        let generation = publisher.publish(Value::new(1).0);
        let thread = thread::spawn(move || {
            assert_eq!(reader.get().read(), 1);
            reader
        });
        publisher.wait(generation);
        retired.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(&retired), 1);
        drop(thread.join().unwrap());
    });
}

#[test]
fn loom_polling_is_as_good_as_waiting() {
    loom::model(|| {
        let (publisher, retired) = setup();
        let mut reader = reader(&publisher);
        let thread = thread::spawn(move || {
            reader.get().read();
            reader.get().read();
        });
        let generation = publisher.publish(Value::new(1).0);
        if publisher.is_passed(generation) {
            retired.store(true, Ordering::Relaxed);
            assert_eq!(Arc::strong_count(&retired), 1);
        }
        thread.join().unwrap();
    });
}

#[test]
fn loom_a_reader_that_begins_during_the_retirement_gets_no_retired_value() {
    loom::model(|| {
        let (publisher, retired) = setup();
        let late = publisher.clone();
        let thread = thread::spawn(move || reader(&late).get().read());
        let generation = publisher.publish(Value::new(1).0);
        publisher.wait(generation);
        retired.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(&retired), 1);
        thread.join().unwrap();
    });
}

#[test]
fn loom_two_publishers_under_a_lock_and_two_waiters() {
    model(2, || {
        let (publisher, retired) = setup();
        let edit = Arc::new(Mutex::new(()));
        let mut reader = reader(&publisher);
        let other = {
            let (publisher, edit) = (publisher.clone(), edit.clone());
            thread::spawn(move || {
                let generation = {
                    let _edit = lock(&edit);
                    publisher.publish(Value::new(1).0)
                };
                publisher.wait(generation);
            })
        };
        let vcpu = thread::spawn(move || {
            reader.get().read();
            reader.get().read();
        });
        let generation = {
            let _edit = lock(&edit);
            publisher.publish(Value::new(2).0)
        };
        publisher.wait(generation);
        retired.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(&retired), 1);
        other.join().unwrap();
        vcpu.join().unwrap();
    });
}
