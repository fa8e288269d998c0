//! What a stream has brought so far, to be waited for by content.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The last that Linux says when it panics.
const PANICKED: &str = "---[ end Kernel panic";

/// Collects a stream on a thread of its own.
#[derive(Clone)]
pub struct Log(Arc<(Mutex<Content>, Condvar)>);

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    ended: bool,
}

impl Log {
    pub fn follow(mut stream: impl Read + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let shared = Arc::clone(&log.0);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A pseudo-terminal whose other side has gone ends with an error.
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                shared.0.lock().unwrap().bytes.extend_from_slice(&buffer[..length]);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().ended = true;
            shared.1.notify_all();
        });
        log
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until `text` has come; false if the stream ends, the guest's kernel panics, or the time is over before.
    pub fn wait_for(&self, text: &str, limit: Duration) -> bool {
        let (mut text, mut end) = (Search::of(text), Search::of(PANICKED));
        let mut found = false;
        self.wait(limit, |content| {
            found = text.is_in(&content.bytes);
            found || end.is_in(&content.bytes)
        });
        found
    }

    /// Waits until the stream has ended; false if the time is over before.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait(limit, |content| content.ended)
    }

    /// False: the stream has ended, or the time is over, and it is not so.
    fn wait(&self, limit: Duration, mut until: impl FnMut(&Content) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut content = self.0.0.lock().unwrap();
        loop {
            if until(&content) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if content.ended || left.is_zero() {
                return false;
            }
            content = self.0.1.wait_timeout(content, left).unwrap().0;
        }
    }
}

/// Looks for a text in what grows. A console brings its bytes one by one: each is looked at once, and not all of them with each.
struct Search<'a> {
    text: &'a [u8],
    looked_at: usize,
}

impl<'a> Search<'a> {
    fn of(text: &'a str) -> Self {
        Self { text: text.as_bytes(), looked_at: 0 }
    }

    fn is_in(&mut self, bytes: &[u8]) -> bool {
        let new = &bytes[self.looked_at..];
        self.looked_at = (bytes.len() + 1).saturating_sub(self.text.len());
        new.windows(self.text.len()).any(|window| window == self.text)
    }
}
