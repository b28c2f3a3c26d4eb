//! What programs print, without the secrets of the policy: a validator quotes the line that it does not like.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// What a secret is replaced by.
const MASKED: &[u8] = b"***";
/// Shortest line of a secret that is looked for, in bytes: shorter ones are everywhere.
const MIN_LINE: usize = 4;
/// Shortest word of a line, in bytes: a line of a password file has others that tell what is wrong.
const MIN_WORD: usize = 8;

/// The words that nobody may be shown.
#[derive(Clone, Default)]
pub struct Mask(Arc<[Zeroizing<Vec<u8>>]>);

impl Mask {
    /// The lines of secrets, and the longer words in them.
    pub fn of<'s>(secrets: impl IntoIterator<Item = &'s [u8]>) -> Self {
        let mut words: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        for line in secrets.into_iter().flat_map(|secret| secret.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii();
            let parts = line.split(|byte| byte.is_ascii_whitespace() || b"\"'=:,;".contains(byte));
            let parts = parts.filter(|word| word.len() >= MIN_WORD);
            words.extend(
                std::iter::once(line)
                    .filter(|line| line.len() >= MIN_LINE)
                    .chain(parts)
                    .map(|word| word.to_vec().into()),
            );
        }
        // The longest first, so that nothing of a line is left beside its words.
        words.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        words.dedup();
        Self(words.into())
    }

    /// The text with each of the words replaced.
    pub fn apply(&self, mut text: Vec<u8>) -> Vec<u8> {
        for word in self.0.iter() {
            let Some(mut at) = find(&text, word) else { continue };
            let mut masked = Vec::with_capacity(text.len());
            let mut rest = text.as_slice();
            loop {
                let (before, from) = rest.split_at(at);
                masked.extend_from_slice(before);
                masked.extend_from_slice(MASKED);
                rest = from.get(word.len()..).unwrap_or_default();
                match find(rest, word) {
                    Some(next) => at = next,
                    None => break,
                }
            }
            masked.extend_from_slice(rest);
            text = masked;
        }
        text
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({} words)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_longer_words_of_secrets_are_replaced_and_nothing_else() {
        let mask = Mask::of([&b"db:app:correct-horse\n\nno\n"[..], b"  key material  ", b"key"]);
        let masked = |text: &str| String::from_utf8(mask.apply(text.as_bytes().to_vec())).unwrap();
        assert_eq!(masked("line 1: `db:app:correct-horse` is wrong"), "line 1: `***` is wrong");
        assert_eq!(masked("correct-horse, correct-horse"), "***, ***");
        assert_eq!(masked("key materialkey material"), "******");
        assert_eq!(masked("db app no key"), "db app no key", "short words are everywhere");
        assert_eq!(Mask::default().apply(b"x".to_vec()), b"x");
        assert_eq!(format!("{mask:?}"), "Mask(4 words)");
    }
}
