//! Every interleaving of a loop that sleeps, those that wake and stop it, and those that take handlers back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use loom::thread;

use super::*;

/// Stops its loop in a turn with this token.
const STOP: u16 = 9;

/// What a handler did. Loom switches threads at its own types only, so these are plain.
#[derive(Default)]
struct Told {
    turns: AtomicUsize,
    in_turn: AtomicBool,
}

struct Teller {
    event_loop: EventLoop,
    told: Arc<Told>,
}

impl Handler for Teller {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn turn(&mut self, token: u16) -> Turn {
        self.told.in_turn.store(true, Ordering::Relaxed);
        thread::yield_now();
        self.told.turns.fetch_add(1, Ordering::Relaxed);
        self.told.in_turn.store(false, Ordering::Relaxed);
        if token == STOP {
            self.event_loop.stop();
        }
        Turn::Sleep
    }
}

fn host() -> (EventLoop, Hosted<Teller>, Arc<Told>) {
    let event_loop = EventLoop::new().unwrap();
    let told = Arc::<Told>::default();
    let hosted = event_loop.host(Teller { event_loop: event_loop.clone(), told: told.clone() }).unwrap();
    (event_loop, hosted, told)
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

#[test]
fn loom_a_loop_that_runs_loses_no_wake() {
    model(|| {
        let (event_loop, hosted, told) = host();
        let runner = thread::spawn(move || event_loop.run().unwrap());
        hosted.handle().wake(1);
        hosted.handle().wake(STOP);
        // A wake that is lost is a deadlock.
        runner.join().unwrap();
        assert_eq!(told.turns.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn loom_a_loop_that_runs_loses_no_stop() {
    model(|| {
        let (event_loop, hosted, _) = host();
        let here = event_loop.clone();
        let runner = thread::spawn(move || here.run().unwrap());
        let handle = hosted.handle().clone();
        let waker = thread::spawn(move || handle.wake(1));
        event_loop.stop();
        runner.join().unwrap();
        waker.join().unwrap();
    });
}

#[test]
fn loom_a_foreign_loop_loses_no_wake() {
    model(|| {
        let (event_loop, hosted, told) = host();
        let wakers: Vec<_> = [1, 2]
            .map(|token| {
                let handle = hosted.handle().clone();
                thread::spawn(move || handle.wake(token))
            })
            .into();
        while told.turns.load(Ordering::Relaxed) < 2 {
            event_loop.core.watched().wait_readable();
            event_loop.pass().unwrap();
        }
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    });
}

/// A waiter's passes take nothing from the foreign loop that it could wait for in vain.
#[test]
fn loom_a_waiter_that_drives_the_loop_loses_no_wake_of_the_foreign_one() {
    model(|| {
        let (event_loop, hosted, told) = host();
        let (here, handle) = (event_loop.clone(), hosted.handle().clone());
        let waiter = thread::spawn(move || {
            here.pass().unwrap();
            handle.wake(1);
        });
        while told.turns.load(Ordering::Relaxed) < 1 {
            event_loop.core.watched().wait_readable();
            event_loop.pass().unwrap();
        }
        waiter.join().unwrap();
    });
}

#[test]
fn loom_no_turn_goes_on_or_comes_once_a_handler_is_taken_back() {
    model(|| {
        let (event_loop, hosted, told) = host();
        let stopper = event_loop.clone();
        let runner = thread::spawn(move || event_loop.run().unwrap());
        hosted.handle().wake(1);
        hosted.handle().wake(2);
        assert!(hosted.take_back().is_some());
        assert!(!told.in_turn.load(Ordering::Relaxed));
        let turns = told.turns.load(Ordering::Relaxed);
        stopper.stop();
        runner.join().unwrap();
        assert_eq!(told.turns.load(Ordering::Relaxed), turns);
    });
}
