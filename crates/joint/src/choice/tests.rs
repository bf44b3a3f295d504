use super::*;
use std::collections::BTreeMap;
use types::CheckpointKind;

const WEB: VmId = VmId::from_bytes([1; 16]);
const DB: VmId = VmId::from_bytes([2; 16]);
const OLD: VmId = VmId::from_bytes([3; 16]);

fn seq(raw: u64) -> WriteSeq {
    WriteSeq::from_raw(raw)
}

fn checkpoint(cut: u64, members: u16, tag: &str) -> Checkpoint {
    Checkpoint {
        id: CheckpointId(seq(cut)),
        cut: seq(cut),
        kind: CheckpointKind::Tagged,
        taken_at: WallTime(cut as i64),
        members,
        tag: tag.into(),
    }
}

/// Journals that hold these checkpoints, each with what of it is damaged, and can be opened at these cuts.
#[derive(Default)]
struct Table {
    held: BTreeMap<VmId, Vec<Held>>,
    tails: BTreeMap<VmId, Vec<u64>>,
    /// From where up to where nobody can tell what a VM has.
    lost: BTreeMap<VmId, (u64, u64)>,
}

impl Table {
    fn with(mut self, vm: VmId, checkpoint: &Checkpoint, damaged_bytes: u64) -> Self {
        let held = Held { checkpoint: checkpoint.clone(), damaged_bytes };
        self.held.entry(vm).or_default().push(held);
        self
    }

    fn lost(mut self, vm: VmId, from: u64, upto: u64) -> Self {
        self.lost.insert(vm, (from, upto));
        self
    }

    fn is_lost(&self, vm: VmId, cut: WriteSeq) -> bool {
        self.lost.get(&vm).is_some_and(|(from, upto)| (*from..=*upto).contains(&cut.raw()))
    }

    fn tail(mut self, vm: VmId, cuts: &[u64]) -> Self {
        self.tails.insert(vm, cuts.to_vec());
        self
    }
}

impl Journals for Table {
    type Error = String;

    fn newest_consistent(&self, vm: VmId, at_most: WriteSeq) -> Option<WriteSeq> {
        self.tails.get(&vm)?.iter().map(|cut| seq(*cut)).filter(|cut| *cut <= at_most).max()
    }

    fn checkpoint(&self, vm: VmId, id: CheckpointId) -> Result<Option<Held>, String> {
        if self.is_lost(vm, id.0) {
            return Err(format!("{id} cannot be read"));
        }
        let held = self.held.get(&vm);
        Ok(held.and_then(|held| held.iter().find(|held| held.checkpoint.id == id).cloned()))
    }

    fn each(
        &self,
        vm: VmId,
        at: &At,
        take: &mut dyn FnMut(&Checkpoint) -> bool,
    ) -> Result<Option<WriteSeq>, String> {
        let upto = self.lost.get(&vm).map(|(_, upto)| seq(*upto));
        for Held { checkpoint, damaged_bytes } in self.held.get(&vm).into_iter().flatten().rev() {
            if self.is_lost(vm, checkpoint.cut) {
                continue;
            }
            let fits = match at {
                At::Latest => *damaged_bytes == 0,
                At::Id(id) => checkpoint.id == *id,
                At::Time(time) => checkpoint.taken_at <= *time && *damaged_bytes == 0,
                At::Tag(tag) => checkpoint.tag == *tag,
            };
            if fits && take(checkpoint) {
                return Ok(upto);
            }
        }
        upto.map_or(Ok(None), |_| Err("a page cannot be read".into()))
    }
}

fn kept(of: &[(VmId, bool)]) -> Vec<Member> {
    of.iter().map(|(vm, left)| Member { vm: *vm, left: *left }).collect()
}

const GROUP: &[(VmId, bool)] = &[(WEB, false), (DB, false), (OLD, true)];

#[test]
fn the_tail_is_of_those_who_are_of_the_group_now_and_of_one_moment() {
    let table = Table::default().tail(WEB, &[3, 5, 9]).tail(DB, &[3, 7]).tail(OLD, &[2]);
    let choose = |pick| choose(&kept(GROUP), false, &At::Latest, &pick, &table);
    let chosen = choose(Pick::All).unwrap();
    assert_eq!((chosen.cut, chosen.vms), (seq(3), vec![WEB, DB]));
    let chosen = choose(Pick::Without(vec![DB])).unwrap();
    assert_eq!((chosen.cut, chosen.left_out), (seq(9), vec![DB]));
    assert_eq!(choose(Pick::Only(vec![OLD])), Err(NotChosen::Nobody), "its stream has ended");
}

#[test]
fn nobody_is_left_out_of_the_tail_without_a_word() {
    let table = Table::default().tail(WEB, &[3]);
    let choose = |pick| choose(&kept(GROUP), false, &At::Latest, &pick, &table);
    assert_eq!(choose(Pick::All), Err(NotChosen::Hindered(vec![DB])));
    assert_eq!(choose(Pick::Without(vec![DB])).unwrap().vms, [WEB]);
    let table = Table::default().tail(WEB, &[3]).tail(DB, &[5]);
    let nothing = super::choose(&kept(GROUP), false, &At::Latest, &Pick::All, &table);
    assert_eq!(nothing, Err(NotChosen::NothingInCommon(DB)));
}

#[test]
fn a_checkpoint_has_its_members_of_then_and_an_incomplete_one_is_passed_over() {
    // Before: web and the one that has left. Then the other came, and the newest is not whole yet.
    let (before, whole, new) =
        (checkpoint(4, 2, "before"), checkpoint(8, 2, "whole"), checkpoint(12, 2, "new"));
    let table = Table::default()
        .with(WEB, &before, 0)
        .with(OLD, &before, 0)
        .with(WEB, &whole, 0)
        .with(DB, &whole, 0)
        .with(WEB, &new, 0);
    let at = |at: At, pick: Pick| choose(&kept(GROUP), true, &at, &pick, &table);
    assert_eq!(at(At::Latest, Pick::All).unwrap().cut, seq(8));
    let chosen = at(At::Time(WallTime(7)), Pick::All).unwrap();
    assert_eq!((chosen.cut, chosen.vms, chosen.left_out), (seq(4), vec![WEB, OLD], vec![]));
    let Err(NotChosen::Lacking(lacking)) = at(At::Id(new.id), Pick::All) else { panic!("it is not whole") };
    assert_eq!((lacking.checkpoint, lacking.holders), (new.clone(), vec![WEB]));
    assert!(matches!(at(At::Tag("new".into()), Pick::All), Err(NotChosen::Lacking(_))));
    let chosen = at(At::Id(new.id), Pick::Without(vec![DB])).unwrap();
    assert_eq!((chosen.cut, chosen.vms, chosen.left_out), (seq(12), vec![WEB], vec![DB]));
    let Err(NotChosen::Lacking(lacking)) = at(At::Id(new.id), Pick::Only(vec![DB])) else {
        panic!("not of it")
    };
    assert_eq!(lacking.named, [DB]);
    assert_eq!(at(At::Tag("none".into()), Pick::All), Err(NotChosen::Missing));
}

#[test]
fn a_damaged_checkpoint_is_opened_by_its_name_alone() {
    let (good, bad) = (checkpoint(4, 2, "good"), checkpoint(8, 2, "bad"));
    let table =
        Table::default().with(WEB, &good, 0).with(DB, &good, 0).with(WEB, &bad, 0).with(DB, &bad, 512);
    let at = |at: At| choose(&kept(GROUP), true, &at, &Pick::All, &table).unwrap();
    assert_eq!(at(At::Latest).cut, seq(4));
    let named = at(At::Tag("bad".into()));
    assert_eq!((named.cut, &named.damaged), (seq(8), &vec![(DB, 512)]));
    assert_eq!(at(At::Id(bad.id)), named);
}

/// Where nobody can tell of one VM what it has the others' newest is no answer, and no error either.
#[test]
fn what_cannot_be_told_of_one_vm_is_passed_over_and_said() {
    let group = |lost: &[VmId]| {
        let mut table = Table::default();
        for cut in [4, 8, 12] {
            table = table.with(WEB, &checkpoint(cut, 2, "x"), 0).with(DB, &checkpoint(cut, 2, "x"), 0);
        }
        lost.iter().fold(table, |table, vm| table.lost(*vm, 9, 13))
    };
    for at in [At::Latest, At::Time(WallTime(20)), At::Tag("x".into())] {
        let choose = |table: &Table| choose(&kept(GROUP), true, &at, &Pick::All, table);
        let whole = choose(&group(&[])).unwrap();
        assert_eq!((whole.cut, whole.untold), (seq(12), vec![]));
        for lost in [vec![WEB], vec![DB], vec![WEB, DB]] {
            let chosen = choose(&group(&lost)).unwrap();
            assert_eq!((chosen.cut, chosen.vms, chosen.untold), (seq(8), vec![WEB, DB], lost), "{at:?}");
        }
        assert!(matches!(choose(&group(&[]).lost(DB, 0, 20)), Err(NotChosen::Unread(_))));
    }
    let named = choose(&kept(GROUP), true, &At::Id(CheckpointId(seq(12))), &Pick::All, &group(&[DB]));
    assert!(matches!(named, Err(NotChosen::Unread(_))), "who names one gets that one");
    let older = choose(&kept(GROUP), true, &At::Time(WallTime(8)), &Pick::All, &group(&[]).lost(DB, 9, 13));
    assert_eq!(older.unwrap().cut, seq(8));
}
