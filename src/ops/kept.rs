//! [`Kept`]: what was found out about a source, once for all who share it.
//!
//! A vertex shares with the other vertices of its job that name the same thing, and with the vertex of
//! another job whose place it takes: see [`Kept::follow`].
//!
//! # Invariants
//!
//! What is kept first stays. Who keeps something goes on with what is kept.
//!
//! # Locking
//!
//! One mutex each, held for one look or one change, never two at a time.

use std::fmt;
use std::hash::Hash;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

/// A place for a value that is found out once. Clones are the same place.
pub struct Kept<T>(Arc<Mutex<State<T>>>);

enum State<T> {
    Unknown,
    Known(T),
    /// What is kept there is kept here.
    Follows(Kept<T>),
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Kept(Arc::clone(&self.0))
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Arc::new(Mutex::new(State::Unknown)))
    }
}

impl<T> Kept<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the value is, or will be.
    fn end(&self) -> Kept<T> {
        let mut end = self.clone();
        loop {
            let next = match &*end.lock() {
                State::Follows(next) => next.clone(),
                State::Unknown | State::Known(_) => break,
            };
            end = next;
        }
        end
    }

    /// Shares what `other` keeps from now on, unless something is known here. Two places that could come to
    /// follow each other are changed by one thread alone.
    pub fn follow(&self, other: &Kept<T>) {
        let (end, other) = (self.end(), other.end());
        if Arc::ptr_eq(&end.0, &other.0) {
            return;
        }
        let mut state = end.lock();
        if matches!(*state, State::Unknown) {
            *state = State::Follows(other);
        }
    }

    /// Where the value is, or will be, to be compared.
    pub fn place(&self) -> Place<T> {
        Place(self.end())
    }
}

/// Tells apart where different values can be kept. Holds the place, so that no other takes its name.
pub struct Place<T>(Kept<T>);

impl<T> Clone for Place<T> {
    fn clone(&self) -> Self {
        Place(self.0.clone())
    }
}

impl<T> PartialEq for Place<T> {
    fn eq(&self, other: &Place<T>) -> bool {
        Arc::ptr_eq(&self.0.0, &other.0.0)
    }
}

impl<T> Eq for Place<T> {}

impl<T> Hash for Place<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0.0).hash(state);
    }
}

impl<T> fmt::Debug for Place<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({:p})", Arc::as_ptr(&self.0.0))
    }
}

impl<T: Clone> Kept<T> {
    pub fn get(&self) -> Option<T> {
        match &*self.end().lock() {
            State::Known(value) => Some(value.clone()),
            State::Unknown | State::Follows(_) => None,
        }
    }

    /// Keeps the value if it is the first one, and returns the one that is kept.
    pub fn keep(&self, value: T) -> T {
        let mut end = self.clone();
        loop {
            let next = match &mut *end.lock() {
                State::Known(kept) => return kept.clone(),
                state @ State::Unknown => {
                    *state = State::Known(value.clone());
                    return value;
                }
                State::Follows(next) => next.clone(),
            };
            end = next;
        }
    }
}

/// What was found out about a vertex is no part of what the vertex is.
impl<T> PartialEq for Kept<T> {
    fn eq(&self, _: &Kept<T>) -> bool {
        true
    }
}

impl<T> Eq for Kept<T> {}

impl<T: Clone> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({})", self.get().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_kept_for_all_who_share_it() {
        let (one, two, three) = (Kept::default(), Kept::default(), Kept::default());
        two.follow(&one);
        three.follow(&two);
        assert_eq!(three.place(), one.place());
        assert_eq!(two.keep(1), 1);
        assert_eq!(three.keep(2), 1);
        assert_eq!((one.get(), two.get(), three.get()), (Some(1), Some(1), Some(1)));
    }

    #[test]
    fn what_is_known_follows_nobody_and_no_place_follows_itself() {
        let (one, two) = (Kept::default(), Kept::default());
        one.keep(1);
        one.follow(&two);
        assert_eq!((one.get(), two.get()), (Some(1), None));
        two.follow(&two.clone());
        let three = Kept::default();
        three.follow(&two);
        two.follow(&three);
        assert_eq!(three.get(), None);
        two.follow(&one);
        assert_eq!((two.get(), three.get()), (Some(1), Some(1)));
    }
}
