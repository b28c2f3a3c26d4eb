//! What is still to be walked and looked at, and in which order. Pure: it looks at nothing itself.
//!
//! With 100,000 paths looking at all of them takes a tenth of a second, and who changes a file meanwhile does not wait. So
//! whoever wants a look puts it in a line here, and takes out a [`Slice`] at a time between two readings of events. A way in
//! line is walked before any name is looked at: it is what events come by.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::tree::SpineId;

/// Names that are looked at between two readings of events, at about a microsecond each.
pub(super) const MOST_NAMES: usize = 256;

/// Walking a way costs as much as looking at so many names.
const WAY: usize = 16;

/// Spines in line, each at most once, first come, first served.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<SpineId>,
    known: HashSet<SpineId>,
    n_added: u64,
    n_done: u64,
}

impl Line {
    /// Who is in line already has a turn that is later than now, which is all that is asked for.
    fn add(&mut self, id: SpineId) {
        if self.known.insert(id) {
            self.waiting.push_back(id);
            self.n_added += 1;
        }
    }

    fn take(&mut self) -> Option<SpineId> {
        let id = self.waiting.pop_front()?;
        self.known.remove(&id);
        Some(id)
    }
}

/// Both lines, and the spine whose names are being looked at.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    ways: Line,
    names: Line,
    begun: Option<(SpineId, usize)>,
}

/// A point in both lines; it has come when everything that was in line before is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    ways: u64,
    names: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Walk the way of this spine.
    Way(SpineId),
    /// Walk it, and look at those of its names.
    Names(SpineId, Range<usize>),
}

/// What is left of a slice.
#[derive(Debug)]
pub(super) struct Slice(usize);

impl Slice {
    pub(super) fn new() -> Self {
        Self(MOST_NAMES)
    }
}

impl Rounds {
    /// The way of this spine is to be walked.
    pub(super) fn add_way(&mut self, id: SpineId) {
        self.ways.add(id);
    }

    /// All names of this spine are to be looked at.
    pub(super) fn add_names(&mut self, id: SpineId) {
        self.names.add(id);
    }

    /// The names of a spine are others than before: what was begun with them begins anew.
    pub(super) fn renamed(&mut self, id: SpineId) {
        if let Some((begun, from)) = &mut self.begun
            && *begun == id
        {
            *from = 0;
        }
    }

    /// Whether nothing is in line.
    pub(super) fn is_empty(&self) -> bool {
        self.begun.is_none() && self.ways.waiting.is_empty() && self.names.waiting.is_empty()
    }

    /// Comes when everything in line now is done.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { ways: self.ways.n_added, names: self.names.n_added }
    }

    /// Comes when every way in line now is walked.
    pub(super) fn ticket_of_ways(&self) -> Ticket {
        Ticket { names: 0, ..self.ticket() }
    }

    /// Whether everything before a ticket is done.
    pub(super) fn has_come(&self, ticket: Ticket) -> bool {
        self.ways.n_done >= ticket.ways && self.names.n_done >= ticket.names
    }

    /// The next piece, while the slice lasts. It counts as done when the next one is asked for.
    pub(super) fn next(&mut self, slice: &mut Slice, n_names: impl Fn(SpineId) -> usize) -> Option<Piece> {
        if slice.0 == 0 {
            return None;
        }
        if let Some(id) = self.ways.take() {
            self.ways.n_done += 1;
            slice.0 = slice.0.saturating_sub(WAY);
            return Some(Piece::Way(id));
        }
        let (id, from) = self.begun.take().or_else(|| self.names.take().map(|id| (id, 0)))?;
        let n_names = n_names(id);
        let to = n_names.min(from.saturating_add(slice.0));
        slice.0 = slice.0.saturating_sub(to.saturating_sub(from).max(WAY));
        if to < n_names {
            self.begun = Some((id, to));
        } else {
            self.names.n_done += 1;
        }
        Some(Piece::Names(id, from..to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a whole slice.
    fn slice(rounds: &mut Rounds, n_names: usize) -> Vec<Piece> {
        let mut slice = Slice::new();
        std::iter::from_fn(|| rounds.next(&mut slice, |_| n_names)).collect()
    }

    #[test]
    fn ways_come_first_and_a_slice_is_short() {
        let mut rounds = Rounds::default();
        for id in 0..100 {
            rounds.add_names(id);
            rounds.add_way(id);
        }
        let first = slice(&mut rounds, 1);
        assert_eq!(first, (0..16).map(Piece::Way).collect::<Vec<_>>());
        let n_slices = std::iter::from_fn(|| Some(slice(&mut rounds, 1)).filter(|slice| !slice.is_empty())).count();
        assert_eq!(n_slices, (200_usize - 16).div_ceil(16));
        assert!(rounds.is_empty());
    }

    #[test]
    fn many_names_in_one_directory_take_several_slices() {
        let mut rounds = Rounds::default();
        rounds.add_names(7);
        let ticket = rounds.ticket();
        assert_eq!(slice(&mut rounds, 600), [Piece::Names(7, 0..256)]);
        // Another look at it was asked for meanwhile: the first may have missed what that is about.
        rounds.add_names(7);
        assert_eq!(slice(&mut rounds, 600), [Piece::Names(7, 256..512)]);
        assert!(!rounds.has_come(ticket));
        assert_eq!(slice(&mut rounds, 600), [Piece::Names(7, 512..600), Piece::Names(7, 0..168)]);
        assert!(rounds.has_come(ticket));
        rounds.renamed(7);
        assert_eq!(slice(&mut rounds, 10), [Piece::Names(7, 0..10)]);
        assert!(rounds.is_empty());
    }

    #[test]
    fn a_ticket_comes_when_all_before_it_is_done_however_much_comes_after_it() {
        let mut rounds = Rounds::default();
        assert!(rounds.has_come(rounds.ticket()));
        rounds.add_way(1);
        rounds.add_names(1);
        let (ways, all) = (rounds.ticket_of_ways(), rounds.ticket());
        // In line already.
        rounds.add_names(1);
        assert_eq!(rounds.ticket(), all);
        rounds.add_names(2);
        assert!(!rounds.has_come(ways));
        let mut one = Slice(1);
        assert_eq!(rounds.next(&mut one, |_| 1), Some(Piece::Way(1)));
        assert!(rounds.has_come(ways) && !rounds.has_come(all));
        let mut one = Slice(1);
        assert_eq!(rounds.next(&mut one, |_| 1), Some(Piece::Names(1, 0..1)));
        assert!(rounds.has_come(all) && !rounds.has_come(rounds.ticket()));
    }

    #[test]
    fn a_spine_without_names_is_walked_all_the_same() {
        let mut rounds = Rounds::default();
        rounds.add_names(1);
        assert_eq!(slice(&mut rounds, 0), [Piece::Names(1, 0..0)]);
        assert!(rounds.is_empty());
    }
}
