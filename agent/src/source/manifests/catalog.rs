//! The content of the files at the last reading, and its changes.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmap_proxy_compiler::model::objects::{Change, Object, ObjectRef};

use super::document::{self, Contents, Format};
use super::reader::{FileText, Found, Listing, Reader, list, read};
use super::watch::{Places, directory_of};
use super::{ManifestProblem, SourceError};
use crate::files::read::ReadError;
use crate::files::stamp::Stamp;
use crate::source::{ObjectChange, Origin};

/// Everything that is known of the manifests, without the objects themselves:
/// those live downstream, here is only a fingerprint of each.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// The node that objects are checked for.
    node_name: String,
    /// Whether the names of objects are read as well.
    with_names: bool,
    roots: Vec<Root>,
    /// Every file once, in the order in which they count.
    order: Vec<PathBuf>,
    files: HashMap<PathBuf, FileState>,
    /// The objects that were handed on, by fingerprint.
    handed_on: HashMap<ObjectRef, u64>,
    /// Objects that were reported to be in two places.
    duplicates: HashSet<ObjectRef>,
    reader: Reader,
}

/// A path that the operator gave.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Its files when it could last be read, by name.
    files: Vec<PathBuf>,
    is_directory: bool,
    /// Whether it is reached through a link.
    is_linked: bool,
    is_lost: bool,
    /// Whether its file system does not answer: not even a watch can be set
    /// then.
    is_hung: bool,
}

#[derive(Debug, Default)]
struct FileState {
    /// `None` to read it again, whatever the timestamps are.
    stamp: Option<Stamp>,
    /// The directory in which it really is, if links lead there.
    directory: Option<PathBuf>,
    /// The reason why it could not be read the last time.
    failure: Option<String>,
    documents: Vec<DocumentState>,
    /// Objects that the file had before a mistake came in. They stay until the
    /// mistake is gone: nothing programmed is lost by a slip of the pen.
    kept: Vec<(ObjectRef, u64)>,
}

#[derive(Debug)]
struct DocumentState {
    /// Fingerprint of its text; `None`: parse it again.
    text: Option<u64>,
    objects: Vec<(ObjectRef, u64)>,
    is_mistaken: bool,
}

/// The results of a reading, besides the objects.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// New problems.
    pub(super) problems: Vec<ManifestProblem>,
    /// Paths that could be read before and can't be any more.
    pub(super) lost: Vec<String>,
    /// Whether something could not be read because of an error that may pass
    /// without any change to a file.
    pub(super) retry: bool,
}

/// The effective version of an object: its fingerprint and its file, as an
/// index of `order`.
type Valid<'a> = HashMap<&'a ObjectRef, (u64, usize)>;

/// The parsed documents, by the position of their file in `order`.
type Parsed = HashMap<(usize, ObjectRef), ObjectChange>;

impl Catalog {
    /// Nothing read yet.
    pub(super) fn new(paths: Vec<PathBuf>, node_name: &str, with_names: bool) -> Self {
        Self {
            node_name: node_name.to_owned(),
            with_names,
            roots: paths
                .into_iter()
                .map(|path| Root {
                    path,
                    files: Vec::new(),
                    is_directory: false,
                    is_linked: false,
                    is_lost: false,
                    is_hung: false,
                })
                .collect(),
            ..Self::default()
        }
    }

    /// The files behind the paths at the last check.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.order
    }

    /// The places of all of them.
    pub(super) fn places(&self) -> Places {
        let answering = || self.roots.iter().filter(|root| !root.is_hung);
        let roots = answering().map(|root| root.path.clone()).collect();
        let may_come = |root: &&Root| root.is_lost || root.is_linked;
        let parents = answering().filter(may_come).filter_map(|root| directory_of(&root.path)).collect();
        let mut contents: HashSet<PathBuf> =
            answering().filter(|root| root.is_directory).map(|root| root.path.clone()).collect();
        contents.extend(self.files.values().filter_map(|file| file.directory.clone()));
        Places { roots, parents, contents }
    }

    /// The first reading: hands every object on as soon as it is parsed, in
    /// path order, so that at most one document is in memory. An object that is
    /// in two places is handed on twice, the valid one last.
    ///
    /// # Errors
    /// A path can't be read at all.
    pub(super) fn load(&mut self, mut hand_on: impl FnMut(ObjectChange)) -> Result<Findings, SourceError> {
        let mut findings = Findings::default();
        let mut unreadable = None;
        for (root, listed) in self.list() {
            match listed {
                Ok(listing) => root.found(listing, &mut findings),
                Err(error) => {
                    let error = SourceError::UnreadablePath { path: root.path.clone(), source: error };
                    let is_hung = matches!(&error, SourceError::UnreadablePath { source: ReadError::Hangs(_), .. });
                    if !is_hung {
                        unreadable.get_or_insert(error);
                        continue;
                    }
                    root.lost(&error, &mut findings);
                    findings.retry = true;
                }
            }
        }
        if let Some(error) = unreadable {
            return Err(error);
        }
        self.order_files();
        self.read_files(self.order.clone(), &mut findings, &mut |_, change| hand_on(change));
        let (valid, covered) = self.valid();
        let handed_on = valid.into_iter().map(|(reference, (hash, _))| (reference.clone(), hash)).collect();
        self.report_duplicates(covered, &mut findings);
        self.handed_on = handed_on;
        Ok(findings)
    }

    /// Reads the changes since then, and returns the difference.
    pub(super) fn rescan(&mut self) -> (Vec<ObjectChange>, Findings) {
        let mut findings = Findings::default();
        self.relist(&mut findings);
        let mut parsed = Parsed::new();
        self.read_files(self.order.clone(), &mut findings, &mut |index, change| {
            parsed.insert((index, change.object().clone()), change);
        });
        let mut read_again = HashSet::new();
        loop {
            match self.difference(&mut parsed, &read_again) {
                Ok((changes, covered)) => {
                    self.report_duplicates(covered, &mut findings);
                    return (changes, findings);
                }
                Err(index) => {
                    let path = self.order[index].clone();
                    if let Some(state) = self.files.get_mut(&path) {
                        state.forget_text();
                    }
                    self.read_files(vec![path], &mut findings, &mut |_, change| {
                        parsed.insert((index, change.object().clone()), change);
                    });
                    read_again.insert(index);
                }
            }
        }
    }

    fn relist(&mut self, findings: &mut Findings) {
        for (root, listed) in self.list() {
            match listed {
                Ok(listing) => root.found(listing, findings),
                Err(error) => {
                    findings.retry |= error.is_transient();
                    let error = SourceError::UnreadablePath { path: root.path.clone(), source: error };
                    root.lost(&error, findings);
                }
            }
        }
        self.order_files();
    }

    fn list(&mut self) -> impl Iterator<Item = (&mut Root, Result<Listing, ReadError>)> {
        let jobs = self.roots.iter().map(|root| (root.path.clone(), ())).collect();
        let mut listings = Vec::with_capacity(self.roots.len());
        self.reader.each(jobs, list, |_, listing| listings.push(listing));
        self.roots.iter_mut().zip(listings)
    }

    /// The roots in the order they were given, their files by name. Where a
    /// file is reached twice, its last place counts.
    fn order_files(&mut self) {
        let mut seen = HashSet::new();
        let files = self.roots.iter().flat_map(|root| &root.files).collect::<Vec<_>>();
        let mut order: Vec<_> = files.into_iter().rev().filter(|path| seen.insert(*path)).cloned().collect();
        order.reverse();
        let wanted: HashSet<_> = order.iter().collect();
        self.files.retain(|path, _| wanted.contains(path));
        self.order = order;
    }

    /// Brings the state of files up to date; `parsed` gets the position of the
    /// file among them, and the object.
    fn read_files(
        &mut self,
        files: Vec<PathBuf>,
        findings: &mut Findings,
        parsed: &mut dyn FnMut(usize, ObjectChange),
    ) {
        let known = |path: &PathBuf| self.files.get(path).and_then(|state| state.stamp.clone());
        let jobs = files.into_iter().map(|path| (known(&path), path)).map(|(stamp, path)| (path, stamp)).collect();
        let mut reader = std::mem::take(&mut self.reader);
        let mut index = 0;
        reader.each(jobs, read, |path, found| {
            let mut of_this_file = |change| parsed(index, change);
            match found {
                Ok(Found::Unchanged) => {}
                Ok(Found::Text(text)) => self.update(path, text, findings, &mut of_this_file),
                Err(error) => self.note_failure(path, &error, findings),
            }
            index += 1;
        });
        self.reader = reader;
    }

    /// The content of the file stays, unless the file is gone.
    fn note_failure(&mut self, path: &Path, error: &ReadError, findings: &mut Findings) {
        let state = self.files.entry(path.to_owned()).or_default();
        state.stamp = None;
        if error.is_not_found() {
            // It went while the directory was read, which will be read again.
            return;
        }
        if matches!(error, ReadError::Dangling) {
            let failure = state.failure.take();
            *state = FileState { failure, ..FileState::default() };
        }
        findings.retry |= error.is_transient();
        let what = error.to_string();
        if state.failure.as_ref() != Some(&what) {
            findings.problems.push(ManifestProblem::file(path, what.clone(), error.is_transient()));
            state.failure = Some(what);
        }
    }

    /// Documents whose text is the same as before are not parsed again.
    fn update(&mut self, path: &Path, file: FileText, findings: &mut Findings, parsed: &mut dyn FnMut(ObjectChange)) {
        let FileText { stamp, text, directory } = file;
        let state = self.files.entry(path.to_owned()).or_default();
        state.stamp = stamp;
        state.directory = directory;
        if state.failure.take().is_some() {
            tracing::info!("{}: can be read again", path.display());
        }
        // A program that writes in place truncates first, and may take its time.
        if text.is_empty() && !state.documents.is_empty() {
            findings.problems.push(ManifestProblem::emptied(path));
            return;
        }
        let format = Format::of(path);
        let path: Arc<Path> = path.into();
        let mut before: HashMap<u64, DocumentState> = HashMap::new();
        let mut missing: HashMap<ObjectRef, u64> = state.kept.drain(..).collect();
        for document in state.documents.drain(..) {
            missing.extend(document.objects.iter().cloned());
            if let Some(text) = document.text {
                before.insert(text, document);
            }
        }
        for (index, document) in document::split(&text, format).into_iter().enumerate() {
            let content = &text[document.range];
            let fingerprint = hash_of(content);
            let known = before.remove(&fingerprint).unwrap_or_else(|| {
                let contents = document::parse(content, document.line, format);
                let position = Position {
                    path: path.clone(),
                    document: index + 1,
                    line: document.line,
                    node_name: &self.node_name,
                    with_names: self.with_names,
                };
                take_in(contents, fingerprint, &position, findings, parsed)
            });
            for (reference, _) in &known.objects {
                missing.remove(reference);
            }
            state.documents.push(known);
        }
        if state.documents.iter().any(|document| document.is_mistaken) {
            state.kept = missing.into_iter().collect();
        }
    }

    /// The object that counts is the last in path order; `covered` are those
    /// that don't, with both files.
    fn valid(&self) -> (Valid<'_>, Vec<(ObjectRef, usize, usize)>) {
        let mut valid = Valid::new();
        let mut covered = Vec::new();
        for (index, path) in self.order.iter().enumerate() {
            let Some(state) = self.files.get(path) else { continue };
            let stated = state.documents.iter().flat_map(|document| &document.objects);
            for (reference, hash) in state.kept.iter().chain(stated) {
                if let Some((_, earlier)) = valid.insert(reference, (*hash, index)) {
                    covered.push((reference.clone(), earlier, index));
                }
            }
        }
        (valid, covered)
    }

    /// Returns the changes that bring the receiver to the effective state.
    ///
    /// # Errors
    /// The file to read again: it has not changed, but an object of it counts
    /// again, since the one that covered it is gone.
    #[expect(clippy::type_complexity, reason = "both lists are taken apart at once by the only caller")]
    fn difference(
        &mut self,
        parsed: &mut Parsed,
        read_again: &HashSet<usize>,
    ) -> Result<(Vec<ObjectChange>, Vec<(ObjectRef, usize, usize)>), usize> {
        let (valid, covered) = self.valid();
        let new: Vec<(ObjectRef, u64, usize)> = valid
            .iter()
            .filter(|(reference, (hash, _))| self.handed_on.get(**reference) != Some(hash))
            .map(|(reference, (hash, index))| ((*reference).clone(), *hash, *index))
            .collect();
        let is_missing = |reference: &ObjectRef, index: usize| {
            !read_again.contains(&index) && !parsed.contains_key(&(index, reference.clone()))
        };
        if let Some((_, _, index)) = new.iter().find(|(reference, _, index)| is_missing(reference, *index)) {
            return Err(*index);
        }
        let mut changes = Vec::new();
        let mut hashes = Vec::new();
        for (reference, hash, index) in new {
            // If it is missing, its text is gone meanwhile or was never valid: its
            // programmed state stays.
            if let Some(change) = parsed.remove(&(index, reference.clone())) {
                changes.push(change);
                hashes.push((reference, hash));
            }
        }
        let gone: Vec<_> = self.handed_on.keys().filter(|reference| !valid.contains_key(reference)).cloned().collect();
        self.handed_on.extend(hashes);
        for reference in gone {
            self.handed_on.remove(&reference);
            changes.push(ObjectChange::gone(reference, Origin::Agent));
        }
        Ok((changes, covered))
    }

    fn report_duplicates(&mut self, covered: Vec<(ObjectRef, usize, usize)>, findings: &mut Findings) {
        for (reference, earlier, later) in &covered {
            if !self.duplicates.contains(reference) {
                findings.problems.push(ManifestProblem::duplicate(
                    reference,
                    &self.order[*earlier],
                    &self.order[*later],
                ));
            }
        }
        self.duplicates = covered.into_iter().map(|(reference, ..)| reference).collect();
    }
}

impl Root {
    fn found(&mut self, listing: Listing, findings: &mut Findings) {
        let was_empty = self.files.is_empty() && self.is_directory;
        if listing.files.is_empty() && !was_empty {
            findings.problems.push(ManifestProblem::empty(&self.path));
        }
        if self.is_lost {
            tracing::info!(path = %self.path.display(), "manifests can be read again");
        }
        self.is_lost = false;
        self.is_hung = false;
        self.is_directory = listing.is_directory;
        self.is_linked = listing.is_linked;
        self.files = listing.files;
    }

    fn lost(&mut self, error: &SourceError, findings: &mut Findings) {
        if !self.is_lost {
            findings.lost.push(format!("{error}; its earlier content stays programmed"));
        }
        self.is_lost = true;
        self.is_hung = matches!(error, SourceError::UnreadablePath { source: ReadError::Hangs(_), .. });
    }
}

impl FileState {
    fn forget_text(&mut self) {
        self.stamp = None;
        for document in &mut self.documents {
            document.text = None;
        }
    }
}

/// The place of a document, and the receiver of its objects.
struct Position<'a> {
    path: Arc<Path>,
    document: usize,
    line: usize,
    node_name: &'a str,
    with_names: bool,
}

/// Hands a document's objects on and remembers its content.
fn take_in(
    contents: Contents,
    text: u64,
    position: &Position<'_>,
    findings: &mut Findings,
    parsed: &mut dyn FnMut(ObjectChange),
) -> DocumentState {
    for name in contents.skipped {
        tracing::info!(file = %position.path.display(), line = position.line, "skipped {name}: a proxy has no use for this kind");
    }
    let is_mistaken = !contents.mistakes.is_empty();
    for mistake in contents.mistakes {
        findings.problems.push(ManifestProblem {
            path: position.path.to_path_buf(),
            document: Some(position.document),
            line: mistake.line.or(Some(position.line)),
            object: mistake.object,
            what: mistake.what,
            remedy: "correct it; the other documents are used, and its earlier content stays programmed",
        });
    }
    let mut objects = Vec::with_capacity(contents.objects.len());
    for object in contents.objects {
        let hash = fingerprint(&object);
        let origin = Origin::File { path: position.path.clone(), line: position.line };
        let read = if position.with_names { ObjectChange::read_with_names } else { ObjectChange::read };
        let (change, problems) = read(&Change::Apply(object), position.node_name, origin);
        findings.problems.extend(problems.into_iter().map(|problem| ManifestProblem {
            path: position.path.to_path_buf(),
            document: Some(position.document),
            line: Some(position.line),
            object: Some(problem.object.to_string()),
            what: format!("{}: {}", problem.field, problem.reason),
            remedy: "correct it",
        }));
        objects.push((change.object().clone(), hash));
        parsed(change);
    }
    DocumentState { text: Some(text), objects, is_mistaken }
}

impl Format {
    fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "json") { Format::Json } else { Format::Yaml }
    }
}

fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Distinguishes a changed object from an unchanged one without keeping it.
fn fingerprint(object: &Object) -> u64 {
    struct Writer(DefaultHasher);
    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = Writer(DefaultHasher::new());
    // These types have string keys only: their serialization can't fail.
    let _ = serde_json::to_writer(&mut writer, object);
    writer.0.finish()
}
