"""All readers of files from strangers."""

from tests.fuzz.model_files import MODEL_FILES
from tests.fuzz.problem_files import PROBLEM_FILES
from tests.fuzz.run_files import RUN_FILES

READERS = [*MODEL_FILES, *RUN_FILES, *PROBLEM_FILES]
