use std::thread;

use super::*;

// Not what most hosts have.
const PAGE: usize = 16384;

fn dirty(bitmap: &DirtyBitmap) -> Vec<usize> {
    let words = bitmap.take();
    (0..words.len() * BITS).filter(|page| words[page / BITS] >> (page % BITS) & 1 != 0).collect()
}

#[test]
fn off_it_records_nothing_and_has_no_memory() {
    let bitmap = DirtyBitmap::with_pages_of(PAGE, 10 * PAGE);
    bitmap.mark_dirty(0, 10 * PAGE);
    assert!(bitmap.words.get().is_none());
    assert_eq!(dirty(&bitmap), [0usize; 0]);
    assert!(!bitmap.dirty_at(0));
}

#[test]
fn a_write_marks_each_page_that_it_touches() {
    let bitmap = DirtyBitmap::with_pages_of(PAGE, 10 * PAGE);
    bitmap.start();
    bitmap.mark_dirty(PAGE - 1, 2);
    bitmap.mark_dirty(5 * PAGE, PAGE);
    bitmap.mark_dirty(8 * PAGE, 0);
    assert!(bitmap.dirty_at(PAGE) && !bitmap.dirty_at(2 * PAGE));
    assert_eq!(dirty(&bitmap), [0, 1, 5]);
    assert_eq!(dirty(&bitmap), [0usize; 0]);
}

#[test]
fn pages_are_those_of_the_host() {
    let page = host_page_size();
    let bitmap = DirtyBitmap::with_len(3 * page);
    bitmap.start();
    bitmap.mark_dirty(2 * page - 1, 1);
    assert_eq!(bitmap.pages(), 3);
    assert_eq!(dirty(&bitmap), [1]);
}

#[test]
fn ranges_cross_words() {
    let bitmap = DirtyBitmap::with_pages_of(PAGE, 300 * PAGE);
    bitmap.start();
    bitmap.mark_dirty(60 * PAGE, 140 * PAGE);
    assert_eq!(dirty(&bitmap), (60..200).collect::<Vec<_>>());
}

#[test]
fn c4_the_tail_page_of_a_bitmap() {
    for pages in [1, 63, 64, 65, 127, 128, 129] {
        let bitmap = DirtyBitmap::with_pages_of(PAGE, pages * PAGE - 100);
        bitmap.start();
        bitmap.mark_dirty(pages * PAGE - 101, 1);
        assert_eq!(dirty(&bitmap), [pages - 1]);
        bitmap.mark_dirty(0, usize::MAX);
        assert_eq!(dirty(&bitmap), (0..pages).collect::<Vec<_>>());
        bitmap.mark_dirty(pages * PAGE, PAGE);
        bitmap.mark_dirty(usize::MAX, 1);
        assert_eq!(dirty(&bitmap), [0usize; 0]);
    }
}

#[test]
fn starting_again_forgets_what_was_not_taken() {
    let bitmap = DirtyBitmap::with_pages_of(PAGE, 4 * PAGE);
    bitmap.start();
    bitmap.mark_dirty(0, 1);
    bitmap.stop();
    bitmap.mark_dirty(PAGE, 1);
    assert!(!bitmap.is_on());
    bitmap.start();
    bitmap.mark_dirty(2 * PAGE, 1);
    assert_eq!(dirty(&bitmap), [2]);
}

#[test]
fn marks_that_race_with_takes_are_in_exactly_one_of_them() {
    let bitmap = DirtyBitmap::with_pages_of(PAGE, 4096 * PAGE);
    bitmap.start();
    let mut seen = vec![0; 4096];
    thread::scope(|scope| {
        let marker = scope.spawn(|| (0..4096).for_each(|page| bitmap.mark_dirty(page * PAGE, 1)));
        while !marker.is_finished() {
            dirty(&bitmap).into_iter().for_each(|page| seen[page] += 1);
        }
    });
    dirty(&bitmap).into_iter().for_each(|page| seen[page] += 1);
    assert!(seen.iter().all(|&times| times == 1));
}
