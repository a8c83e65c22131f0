//! One copy of every text and every set of hints that many objects share.
//!
//! A hundred thousand endpoints name the same few nodes, zones and ports; interned, an endpoint costs its own size and
//! no heap. The owner of the objects (a source) keeps one `Names` and calls [`Names::prune`] when objects have gone.

use std::collections::HashSet;
use std::sync::Arc;

use super::slice::Hints;

/// The texts and hints in use.
#[derive(Debug, Default)]
pub struct Names {
    texts: HashSet<Arc<str>>,
    hints: HashSet<Arc<Hints>>,
}

impl Names {
    /// The shared copy of `text`.
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }

    /// The shared copy of `hints`.
    pub(super) fn hints(&mut self, hints: Hints) -> Arc<Hints> {
        if let Some(known) = self.hints.get(&hints) {
            return Arc::clone(known);
        }
        let new = Arc::new(hints);
        self.hints.insert(Arc::clone(&new));
        new
    }

    /// Forgets what no object uses any more.
    pub fn prune(&mut self) {
        self.hints.retain(|hints| Arc::strong_count(hints) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_copy_until_nobody_uses_it() {
        let mut names = Names::default();
        let first = names.text("zone-a");
        assert!(Arc::ptr_eq(&first, &names.text("zone-a")));
        names.prune();
        assert_eq!(names.texts.len(), 1);
        drop(first);
        names.prune();
        assert!(names.texts.is_empty());
    }
}
