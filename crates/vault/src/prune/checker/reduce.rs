//! Every order that differs, by dynamic partial-order reduction: two orders of operations that do not conflict are one.
//!
//! After each run every race in it (two operations of different actors that conflict, with nothing between that puts them in order) is
//! turned round in a later run; sleep sets leave out what was tried already. (Flanagan and Godefroid 2005.) Here every actor can always
//! go on, so whoever is to come first in a race can be let go first. Invariant: what is answered as complete has left out no order that
//! an actor, the storage's last state or the judge could tell from one that was tried.

use std::collections::BTreeSet;

use super::stage::Operation;

/// A place in an order: who could go on with what, and who has been let go there.
#[derive(Debug, Clone)]
struct Node {
    pending: Vec<Option<Operation>>,
    chosen: usize,
    wanted: BTreeSet<usize>,
    tried: BTreeSet<usize>,
    sleeping: BTreeSet<usize>,
}

/// The orders of a program, as far as they were tried.
#[derive(Debug, Default)]
pub(super) struct Orders {
    nodes: Vec<Node>,
    at: usize,
}

impl Orders {
    /// From the beginning again, in the next order.
    pub(super) fn restart(&mut self) {
        self.at = 0;
    }

    /// Who goes on, where these are the operations that wait. None: whatever follows was tried in another order.
    pub(super) fn choose(&mut self, pending: &[Option<Operation>]) -> Option<usize> {
        if let Some(node) = self.nodes.get(self.at) {
            self.at += 1;
            let same = node.pending.iter().zip(pending).all(|(a, b)| match (a, b) {
                (Some(a), Some(b)) => (a.verb, a.kind()) == (b.verb, b.kind()),
                (a, b) => a.is_none() && b.is_none(),
            });
            assert!(same, "an actor did something else than before: {pending:?}, {:?}", node.pending);
            return Some(node.chosen);
        }
        let before = self.nodes.last();
        let sleeping: BTreeSet<usize> = before.map_or_else(BTreeSet::new, |before| {
            let done = before.pending[before.chosen].as_ref();
            let rests = |actor: &usize| {
                before.pending[*actor].as_ref().zip(done).is_some_and(|(theirs, done)| !theirs.conflicts(done))
            };
            before.sleeping.union(&before.tried).copied().filter(|a| *a != before.chosen).filter(rests).collect()
        });
        let last = before.map_or(0, |before| before.chosen);
        let can = |actor: &usize| pending[*actor].is_some() && !sleeping.contains(actor);
        let chosen = Some(last).filter(can).or_else(|| (0..pending.len()).find(can))?;
        self.nodes.push(Node {
            pending: pending.to_vec(),
            chosen,
            wanted: BTreeSet::new(),
            tried: BTreeSet::from([chosen]),
            sleeping,
        });
        self.at += 1;
        Some(chosen)
    }

    /// Looks for races in the order that was just run, and turns to the next one. Answers whether there is one.
    pub(super) fn turn(&mut self) -> bool {
        for (earlier, actor) in self.races() {
            if let Some(node) = self.nodes.get_mut(earlier) {
                node.wanted.insert(actor);
            }
        }
        while let Some(node) = self.nodes.last_mut() {
            let next = node.wanted.iter().find(|a| !node.tried.contains(*a) && !node.sleeping.contains(*a)).copied();
            if let Some(next) = next {
                node.tried.insert(next);
                node.chosen = next;
                return true;
            }
            self.nodes.pop();
        }
        false
    }

    /// Places of operations, and who did something later that might as well have come before.
    fn races(&self) -> Vec<(usize, usize)> {
        let actors = self.nodes.first().map_or(0, |node| node.pending.len());
        let operation = |node: &Node| node.pending[node.chosen].clone();
        let done: Vec<(usize, Option<Operation>)> =
            self.nodes.iter().map(|node| (node.chosen, operation(node))).collect();
        // Of each operation: how many of each actor's lie before it, in whatever order.
        let mut clocks: Vec<Vec<usize>> = Vec::with_capacity(done.len());
        let mut of_actor: Vec<Vec<usize>> = vec![Vec::new(); actors];
        let mut races = Vec::new();
        for (place, (actor, operation)) in done.iter().enumerate() {
            let mut clock = of_actor[*actor].last().map_or_else(|| vec![0; actors], |before| clocks[*before].clone());
            let Some(operation) = operation else { continue };
            for earlier in (0..place).rev() {
                let (other, theirs) = &done[earlier];
                if other == actor || clock[*other] > earlier {
                    continue;
                }
                if theirs.as_ref().is_some_and(|theirs| theirs.conflicts(operation)) {
                    races.push((earlier, *actor));
                    for (own, theirs) in clock.iter_mut().zip(&clocks[earlier]) {
                        *own = (*own).max(*theirs);
                    }
                }
            }
            clock[*actor] = place + 1;
            clocks.push(clock);
            of_actor[*actor].push(place);
        }
        races
    }
}
