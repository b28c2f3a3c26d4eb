//! What was probably meant by a word that is not known.

/// The known word that was probably meant.
pub(in crate::policy) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    closest_within(word, known, |candidate| candidate.len().max(word.len()) / 3)
}

/// The known path that was probably meant. Equal directories make names of files no more alike.
pub(in crate::policy) fn closest_path<'k>(path: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let length = path.rsplit('/').next().map_or(0, str::len);
    closest_within(path, known, |_| length / 3)
}

fn closest_within<'k>(
    word: &str,
    known: impl Iterator<Item = &'k str>,
    most: impl Fn(&str) -> usize,
) -> Option<&'k str> {
    // A distance costs the product of the lengths; no real word is this long.
    if word.len() > 256 {
        return None;
    }
    known
        .filter(|candidate| candidate.len() <= 256)
        .map(|candidate| (strsim::damerau_levenshtein(candidate, word), candidate))
        .filter(|(distance, candidate)| *distance <= most(candidate).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}
