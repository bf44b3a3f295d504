use super::*;

fn entry(number: u64, in_pieces: bool) -> DamageEntry {
    let what = format!("place {number}");
    DamageEntry { what, from_seq: number, to_seq: Some(number + 1), indexed: true, in_pieces, more: None }
}

#[test]
fn of_many_places_that_are_found_together_the_last_ones_are_counted() {
    let found = |number: usize| Spoilt { what: format!("place {number}"), pieces: Vec::new() };
    let few: Vec<Spoilt> = (0..DAMAGE_TOLD_TOGETHER_MAX).map(found).collect();
    assert!(in_bounded_words(few).iter().all(|found| !found.what.contains("more")));
    let many = in_bounded_words((0..DAMAGE_TOLD_TOGETHER_MAX + 4000).map(found).collect());
    assert_eq!(many.len(), DAMAGE_TOLD_TOGETHER_MAX);
    let last = DAMAGE_TOLD_TOGETHER_MAX - 1;
    assert_eq!(many[last].what, format!("place {last}, and 4000 more places"));
}

#[test]
fn the_oldest_words_for_damage_become_one_and_none_that_an_opening_goes_by() {
    let mut damage = vec![entry(0, false)];
    let told = DAMAGE_TOLD_MAX as u64;
    for number in 1..=told + 500 {
        damage.push(entry(number, true));
        bound_those(&mut damage, &["place 7".to_owned()]);
    }
    assert_eq!(damage.len(), DAMAGE_TOLD_MAX + 2);
    let of = |number: u64| damage.iter().any(|entry| entry.what == format!("place {number}"));
    assert!(of(0) && of(7) && of(told + 500) && !of(1));
    let counted: u64 = damage.iter().filter_map(|entry| entry.more).sum();
    assert_eq!(counted + DAMAGE_TOLD_MAX as u64 - 1, told + 499);
    let first = &damage[0];
    assert!(first.what.starts_with("500 more places") && first.from_seq == 1, "{first:?}");
    assert_eq!(first.to_seq, Some(502), "it is made good as far as all of them are");
}
