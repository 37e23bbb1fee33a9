// Counts the words of its standard input and prints the most frequent ones, the count from the environment.
// Built by: examples/build words-rust
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::process::exit;

fn main() {
    let wanted = std::env::var("MOST").ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(3);
    let mut text = String::new();
    if let Err(error) = io::stdin().read_to_string(&mut text) {
        eprintln!("words: cannot read standard input: {}", error);
        exit(1);
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for word in text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    if counts.is_empty() {
        eprintln!("words: there is no word in standard input");
        exit(3);
    }
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    for (word, count) in sorted.into_iter().take(wanted) {
        println!("{} {}", count, word);
    }
}
