//! The answers of servers, as a JSON reader returns them, to arrays of log-probabilities.
//!
//! The answers are Python objects, so these functions hold the GIL.

use std::fmt::Display;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyIterator, PyList, PyString, PyTuple};
use simct_align::ids::{RaggedIds, Side, TokenId};
use simct_align::top_k::{TopK, is_logprob};

use crate::errors::to_py_err;

/// What vLLM's server writes for −∞, which JSON does not have.
const WRITTEN_FOR_NEGATIVE_INFINITY: f64 = -9999.0;

/// What vLLM writes before an id in place of a token's text.
const TOKEN_ID: &str = "token_id:";

/// (log-probabilities of the tokens, ids of all lists, their log-probabilities, where lists begin)
type Arrays<'py> = (
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray1<i64>>,
);
/// (`tokens` or ids, `token_logprobs`, `top_logprobs`)
type EchoedText<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);
type Lists<'py> = Option<Bound<'py, PyIterator>>;

/// What a server was asked: the attributes of Python's `Question`.
#[derive(FromPyObject)]
pub(crate) struct Question<'py> {
    /// The ids of all rows.
    values: PyReadonlyArray1<'py, i64>,
    offsets: PyReadonlyArray1<'py, i64>,
    /// The first position of every row that the answer has.
    starts: PyReadonlyArray1<'py, i64>,
    top_k: Option<usize>,
    vocab_size: usize,
}

/// Reads vLLM's `prompt_logprobs`: for every row a sequence of None or {id: log-probability}.
#[pyfunction]
pub(crate) fn read_prompt_logprobs<'py>(
    py: Python<'py>,
    answers: Vec<Bound<'py, PyAny>>,
    question: Question<'py>,
) -> PyResult<Arrays<'py>> {
    let mut reader = Reader::new(&question)?;
    for (row, answer) in answers.iter().enumerate() {
        let ids = reader.start_row(row)?;
        reader.check_length("prompt_logprobs", answer, ids.len(), false)?;
        for (entry, &id) in answer.try_iter()?.zip(ids) {
            let entry = entry?;
            if !entry.is_none() {
                reader.read_dict(&entry, IdForm::Any)?;
            }
            let taken = reader.list.iter().find(|(listed, _)| *listed == id);
            let taken = taken.map(|(_, logprob)| *logprob);
            if taken.is_none() && !reader.list.is_empty() {
                return Err(reader.error(format!(
                    "the answer has no log-probability of id {id}, which teacher_ids has here"
                )));
            }
            reader.end_position(taken)?;
        }
    }
    reader.into_arrays(py)
}

/// Reads SGLang's log-probabilities of the input: for every row `input_token_logprobs`, and
/// `input_top_logprobs` or None.
#[pyfunction]
pub(crate) fn read_input_logprobs<'py>(
    py: Python<'py>,
    answers: Vec<(Bound<'py, PyAny>, Option<Bound<'py, PyAny>>)>,
    question: Question<'py>,
) -> PyResult<Arrays<'py>> {
    let mut reader = Reader::new(&question)?;
    for (row, (tokens, lists)) in answers.iter().enumerate() {
        let ids = reader.start_row(row)?;
        reader.check_length("input_token_logprobs", tokens, ids.len(), false)?;
        let mut lists = reader.lists("input_top_logprobs", lists.as_ref(), ids.len())?;
        for (token, &id) in tokens.try_iter()?.zip(ids) {
            let (taken, found) = reader.pair(&token?)?;
            // The server writes 0 for the last id of the vocabulary.
            if !(found == 0 && id.index().checked_add(1) == Some(question.vocab_size)) {
                reader.check_id(found, id)?;
            }
            if let Some(list) = next(&mut lists)?.filter(|list| !list.is_none()) {
                let Ok(entries) = list.try_iter() else {
                    return Err(reader.wrong_type("a list of entries", &list));
                };
                for entry in entries {
                    match reader.pair(&entry?)? {
                        (Some(logprob), id) => reader.list.push((id, logprob)),
                        (None, id) => {
                            let message = format!("the list has no log-probability of id {id}");
                            return Err(reader.error(message));
                        }
                    }
                }
            }
            reader.end_position(taken)?;
        }
    }
    reader.into_arrays(py)
}

/// Reads OpenAI's `logprobs` of an echoed text: for every row `tokens` (or ids), `token_logprobs`,
/// and `top_logprobs` or None.
#[pyfunction]
pub(crate) fn read_echo_logprobs<'py>(
    py: Python<'py>,
    answers: Vec<EchoedText<'py>>,
    question: Question<'py>,
) -> PyResult<Arrays<'py>> {
    let mut reader = Reader::new(&question)?;
    for (row, (tokens, logprobs, lists)) in answers.iter().enumerate() {
        let ids = reader.start_row(row)?;
        // Generated tokens follow the text, in each of the lists.
        reader.check_length("tokens", tokens, ids.len(), true)?;
        reader.check_length("token_logprobs", logprobs, ids.len(), true)?;
        let mut lists = reader.lists("top_logprobs", lists.as_ref(), logprobs.len()?)?;
        let found = tokens.try_iter()?.zip(logprobs.try_iter()?);
        for (&id, (token, logprob)) in ids.iter().zip(found) {
            let (found, logprob) = (reader.id(&token?, IdForm::Marked)?, logprob?);
            reader.check_id(found, id)?;
            if let Some(list) = next(&mut lists)?.filter(|list| !list.is_none()) {
                reader.read_dict(&list, IdForm::Marked)?;
            }
            let taken = (!logprob.is_none()).then(|| reader.logprob(&logprob)).transpose()?;
            reader.end_position(taken)?;
        }
    }
    reader.into_arrays(py)
}

/// Checks lists of ids and their log-probabilities.
#[pyfunction]
pub(crate) fn check_top_k(
    py: Python<'_>,
    ids: PyReadonlyArray1<'_, i64>,
    logprobs: PyReadonlyArray1<'_, f32>,
    offsets: PyReadonlyArray1<'_, i64>,
    vocab_size: usize,
) -> PyResult<()> {
    let lists =
        TopK { ids: ids.as_slice()?, logprobs: logprobs.as_slice()?, offsets: offsets.as_slice()? };
    py.detach(|| lists.check(vocab_size, None)).map_err(to_py_err)
}

/// How an id is written.
#[derive(Clone, Copy, PartialEq)]
enum IdForm {
    /// As a number, or as its digits.
    Any,
    /// As a number, or as its digits after [`TOKEN_ID`]. Without the mark, digits may be a text.
    Marked,
}

/// Reads answers position by position, and knows the place for error messages.
struct Reader<'a> {
    ids: RaggedIds<'a, i64>,
    starts: &'a [i64],
    top_k: Option<usize>,
    vocab_size: usize,
    row: usize,
    position: usize,
    /// The first position of the row that the answer has.
    first: usize,
    /// The list of this position: (id, log-probability).
    list: Vec<(i64, f64)>,
    taken: Vec<f64>,
    top_ids: Vec<i64>,
    top_logprobs: Vec<f32>,
    top_offsets: Vec<i64>,
}

impl<'a> Reader<'a> {
    fn new(question: &'a Question<'_>) -> PyResult<Self> {
        let (values, offsets) = (question.values.as_slice()?, question.offsets.as_slice()?);
        let ids = RaggedIds::new(Side::Teacher, values, offsets)
            .map_err(|error| to_py_err(error.into()))?;
        Ok(Self {
            ids,
            starts: question.starts.as_slice()?,
            top_k: question.top_k,
            vocab_size: question.vocab_size,
            row: 0,
            position: 0,
            first: 0,
            list: Vec::new(),
            taken: Vec::with_capacity(values.len()),
            top_ids: Vec::new(),
            top_logprobs: Vec::new(),
            top_offsets: vec![0],
        })
    }

    /// Begins a row, and returns the ids of the positions that the answer has.
    fn start_row(&mut self, row: usize) -> PyResult<&'a [i64]> {
        let Some(&asked) = self.starts.get(row).filter(|_| row < self.ids.rows()) else {
            return Err(PyValueError::new_err(format!("row {row}: there are no ids of this row")));
        };
        let (start, ids) = (asked.index(), self.ids.row(row));
        let Some(ids) = ids.get(start..) else {
            return Err(PyValueError::new_err(format!(
                "start: row {row}: {asked} is not a position of a row of {} tokens",
                ids.len()
            )));
        };
        for _ in 0..start {
            self.push_position(None);
        }
        (self.row, self.position, self.first) = (row, start, start);
        Ok(ids)
    }

    /// Checks how many positions a part of the answer has; there may be more if `more` says so.
    fn check_length(
        &self,
        name: &str,
        found: &Bound<'_, PyAny>,
        expected: usize,
        more: bool,
    ) -> PyResult<()> {
        let Ok(found) = found.len() else {
            return Err(PyTypeError::new_err(format!(
                "row {}: {name}: expected a list, got {}",
                self.row,
                name_of_type(found)
            )));
        };
        if found == expected || (more && found > expected) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "row {}: {name} has {found} positions, expected {expected} as in teacher_ids",
            self.row
        )))
    }

    /// An iterator over the lists of a row; none if the caller wants no lists.
    fn lists<'py>(
        &self,
        name: &str,
        lists: Option<&Bound<'py, PyAny>>,
        positions: usize,
    ) -> PyResult<Lists<'py>> {
        match (lists, self.top_k) {
            (_, Some(0)) | (None, None) => Ok(None),
            (None, Some(top_k)) => Err(PyValueError::new_err(format!(
                "row {}: the answer has no {name}, expected lists of {top_k} (top_k)",
                self.row
            ))),
            (Some(lists), _) => {
                self.check_length(name, lists, positions, false)?;
                lists.try_iter().map(Some)
            }
        }
    }

    /// Reads {id: log-probability} into the list.
    fn read_dict(&mut self, entry: &Bound<'_, PyAny>, form: IdForm) -> PyResult<()> {
        let Ok(entry) = entry.cast::<PyDict>() else {
            return Err(self.wrong_type("a dict from id to log-probability", entry));
        };
        for (key, value) in entry {
            let (id, logprob) = (self.id(&key, form)?, self.logprob(&value)?);
            self.list.push((id, logprob));
        }
        Ok(())
    }

    /// Reads [log-probability, id, text], with or without the text.
    fn pair(&self, entry: &Bound<'_, PyAny>) -> PyResult<(Option<f64>, i64)> {
        let is_list = entry.is_instance_of::<PyList>() || entry.is_instance_of::<PyTuple>();
        if !is_list || !matches!(entry.len()?, 2 | 3) {
            return Err(self.wrong_type("a list [log-probability, id, text]", entry));
        }
        let (logprob, id) = (entry.get_item(0)?, entry.get_item(1)?);
        let logprob = (!logprob.is_none()).then(|| self.number(&logprob)).transpose()?;
        Ok((logprob, self.id(&id, IdForm::Marked)?))
    }

    fn id(&self, key: &Bound<'_, PyAny>, form: IdForm) -> PyResult<i64> {
        let expected = match form {
            IdForm::Any => "an id",
            IdForm::Marked => "an id or \"token_id:<id>\" (vLLM: return_tokens_as_token_ids=True)",
        };
        if let Ok(text) = key.cast::<PyString>() {
            let text = text.to_string_lossy();
            let digits = text.strip_prefix(TOKEN_ID).or((form == IdForm::Any).then_some(&*text));
            return digits
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| self.error(format!("expected {expected}, got {text:?}")));
        }
        if key.is_instance_of::<PyBool>() {
            return Err(self.wrong_type(expected, key));
        }
        key.extract().map_err(|_| {
            if key.is_instance_of::<PyInt>() {
                self.error(format!("id {key} does not fit int64"))
            } else {
                self.wrong_type(expected, key)
            }
        })
    }

    /// Reads a log-probability that may be in an object or a dict.
    fn logprob(&self, value: &Bound<'_, PyAny>) -> PyResult<f64> {
        let name = intern!(value.py(), "logprob");
        let logprob = if value.is_instance_of::<PyFloat>() {
            None
        } else if let Ok(entry) = value.cast::<PyDict>() {
            entry.get_item(name)?
        } else {
            value.getattr_opt(name)?
        };
        let logprob = self.number(logprob.as_ref().unwrap_or(value))?;
        let infinite = logprob == WRITTEN_FOR_NEGATIVE_INFINITY;
        Ok(if infinite { f64::NEG_INFINITY } else { logprob })
    }

    fn number(&self, value: &Bound<'_, PyAny>) -> PyResult<f64> {
        if value.is_instance_of::<PyBool>() {
            return Err(self.wrong_type("a log-probability", value));
        }
        value.extract().map_err(|_| self.wrong_type("a log-probability", value))
    }

    fn check_id(&self, found: i64, expected: i64) -> PyResult<()> {
        if found == expected {
            return Ok(());
        }
        Err(self.error(format!("the answer has id {found}, but teacher_ids has {expected} here")))
    }

    /// Ends a position with the log-probability of its token, which only the first may lack.
    fn end_position(&mut self, taken: Option<f64>) -> PyResult<()> {
        let Some(logprob) = taken else {
            if self.position != self.first || !self.list.is_empty() {
                return Err(self.error(
                    "the answer has no log-probability of the token; only the first position may \
                     be without",
                ));
            }
            self.push_position(None);
            return Ok(());
        };
        if !is_logprob(logprob) {
            let message = format!("the token's log-probability is {logprob}, expected at most 0");
            return Err(self.error(message));
        }
        if let Some(top_k) = self.top_k {
            let found = self.list.len();
            if found < top_k {
                return Err(self.error(format!(
                    "the answer has {found} log-probabilities, expected at least {top_k} (top_k)"
                )));
            }
        }
        self.push_position(Some(logprob));
        Ok(())
    }

    /// Moves the likeliest tokens of the list out.
    fn push_position(&mut self, taken: Option<f64>) {
        self.taken.push(taken.unwrap_or(f64::NAN));
        self.list.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        self.list.truncate(self.top_k.unwrap_or(usize::MAX));
        self.top_ids.extend(self.list.iter().map(|(id, _)| *id));
        #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
        self.top_logprobs.extend(self.list.iter().map(|(_, logprob)| *logprob as f32));
        self.top_offsets.push(i64::try_from(self.top_ids.len()).unwrap_or(i64::MAX));
        self.list.clear();
        self.position += 1;
    }

    fn into_arrays(self, py: Python<'_>) -> PyResult<Arrays<'_>> {
        let Self { taken, top_ids, top_logprobs, top_offsets, .. } = self;
        let lists = TopK { ids: &top_ids, logprobs: &top_logprobs, offsets: &top_offsets };
        lists.check(self.vocab_size, Some(self.ids.offsets())).map_err(to_py_err)?;
        // A vocabulary has fewer than 2^24 tokens.
        let ids = top_ids.iter().map(|&id| i32::try_from(id).unwrap_or(i32::MAX));
        Ok((
            taken.into_pyarray(py),
            PyArray1::from_iter(py, ids),
            top_logprobs.into_pyarray(py),
            top_offsets.into_pyarray(py),
        ))
    }

    fn at(&self, message: impl Display) -> String {
        format!("row {}, position {}: {message}", self.row, self.position)
    }

    fn error(&self, message: impl Display) -> PyErr {
        PyValueError::new_err(self.at(message))
    }

    fn wrong_type(&self, expected: &str, found: &Bound<'_, PyAny>) -> PyErr {
        PyTypeError::new_err(self.at(format!("expected {expected}, got {}", name_of_type(found))))
    }
}

fn name_of_type(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
}

/// The next list, if the row has lists.
fn next<'py>(lists: &mut Lists<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
    lists.as_mut().and_then(Iterator::next).transpose()
}
