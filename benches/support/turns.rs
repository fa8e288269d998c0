//! Times against a floor, in turns, so that what else the host does falls on both.

use std::time::Instant;

/// Prints the median of what ours takes over what the floor takes.
pub fn ratio(name: &str, rounds: u32, mut ours: impl FnMut(), mut floor: impl FnMut()) {
    let time = |path: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..rounds).for_each(|_| path());
        start.elapsed().as_secs_f64()
    };
    let mut ratios: Vec<_> = (0..41).map(|_| time(&mut ours) / time(&mut floor)).collect();
    ratios.sort_by(f64::total_cmp);
    println!("{name}: {:.3} x floor (quartiles {:.3}, {:.3})", ratios[20], ratios[10], ratios[30]);
}
