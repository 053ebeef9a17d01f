"""The level of each test (`make test-LEVEL` runs one, `make test` all), and fixtures that several files use.

Tests not named here are quick: all of them together take less than 90 seconds on two CPU cores, for a check after each
edit. A name is that of a file, or of one function in it: `FILE::FUNCTION`.
"""

import os

import pytest

LEVELS = {
    "ranks": (
        "test_context_parallel.py", "test_engine_ranks.py", "test_rank_cells.py", "test_rank_dies.py",
        "test_sequence_parallel.py", "test_store_ranks.py", "test_train_ranks.py", "test_vae_ranks.py",
    ),
    "notebooks": (
        "test_solved_notebooks.py",
        "test_assignment.py::test_nbgrader_gives_nothing_all_and_a_part",
        "test_notebooks.py::test_running_stores_counts_and_outputs",
        "test_notebooks.py::test_what_answers_a_prediction_is_folded_and_its_options_stay_as_text",
        "test_watch.py::test_one_picture_remains_in_a_stored_notebook",
        "test_widgets.py::test_a_built_notebook_holds_the_still_picture_and_no_widget",
        "test_widgets.py::test_nbval_finds_no_difference",
    ),
    "slow": (
        "test_ablation.py", "test_adapters.py", "test_benchmarks.py", "test_check_gpu.py", "test_clusters.py",
        "test_curation.py", "test_extending.py", "test_finetune_told.py", "test_growth.py", "test_hostile_answers.py",
        "test_image_to_video.py", "test_loop.py", "test_memory.py", "test_older_processor.py", "test_one_gpu.py",
        "test_plan.py", "test_policy.py", "test_prefix_model.py", "test_run_folder.py", "test_sampling_ways.py",
        "test_share_lora.py", "test_shots.py", "test_small_studies.py", "test_speedrun.py", "test_stages.py",
        "test_stand_in.py", "test_tour.py", "test_train.py", "test_transformer_task.py", "test_twins.py",
        "test_vae_compile.py", "test_vae_task.py", "test_wheel.py",
        "test_aesthetics.py::test_curate_takes_a_predictor",
        "test_assignment.py::test_what_a_teacher_edited_is_kept",
        "test_checkpoints.py::test_kill_minus_9_at_any_moment_leaves_the_newest_intact",
        "test_compat.py::test_import_is_instant_and_torchvision_imports_after_it",
        "test_doctor.py::test_every_main_job_is_really_tried",
        "test_exam.py::test_the_packages_version_is_right_whatever_the_word",
        "test_film_colours.py::test_videos_with_hdr",
        "test_oracle.py::test_reads_true_clips",
        "test_pipeline.py::test_tiles_are_those_of_tiled_decode",
        "test_predictions.py::test_two_notebooks_at_once_lose_nothing", "test_wrong_types.py",
        "test_shape_films.py::test_shape_motion_and_count_survive",
        "test_site_pages.py::test_the_site_is_built_without_a_warning",
        "test_transformer_parity.py::test_published_size_runs_on_the_meta_device",
        "test_vae_parity.py::test_values_and_gradients_are_theirs_at_half_the_published_frame_with_one_thread_and_two",
        "test_widgets.py::test_below_a_still_picture_the_widgets_own_and_its_words_follow_every_slider",
        "test_widgets.py::test_noise_grows_with_the_timestep_and_nothing_is_decoded_twice",
        "test_widgets.py::test_the_score_of_rope_depends_on_the_distance_alone",
    ),
}


def pytest_sessionstart() -> None:
    """Lets test modules import diffusers, transformers and lpips, whatever build of torchvision is installed.

    minicogvx is imported here, not at the top: `--jaxtyping-packages` must have its hook in place first.
    """
    from minicogvx.compat import fix_torchvision_on_import

    fix_torchvision_on_import()


# tests.tiny imports minicogvx, so fixtures import it themselves, for the reason above.


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of `tests.tiny.tiny_pipe()`, as `Pipeline.save` writes it; for reading only."""
    from tests.tiny import tiny_pipe

    return tiny_pipe().save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of three short videos of the shapes world and their captions."""
    from tests.tiny import write_films

    return write_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def clips(films, tmp_path_factory):
    """The videos of `films`, encoded."""
    from tests.trained import encode_films

    return encode_films(films, tmp_path_factory.mktemp("cache"))


def level_of(file: str, function: str) -> str:
    """The level of one test: "quick" if neither its file nor the function is in LEVELS."""
    return next((level for level, names in LEVELS.items() if file in names or f"{file}::{function}" in names), "quick")


def pytest_itemcollected(item) -> None:
    """Marks every test with its level, for `-m LEVEL`; tests in a browser have their own mark."""
    if item.get_closest_marker("browser") is None:
        item.add_marker(level_of(item.path.name, getattr(item, "originalname", None) or item.name))


@pytest.hookimpl(trylast=True)  # after -m has chosen
def pytest_collection_modifyitems(items) -> None:
    """Every process of pytest-xdist, which begins with an equal share of the list, gets as many notebooks, and first.

    They take longest: left to the end, one process runs them while the others have nothing to do.
    """
    levels = [{mark.name for mark in item.iter_markers()} for item in items]
    notebooks = [item for item, marks in zip(items, levels) if "notebooks" in marks]
    others = [item for name in ("slow", "") for item, marks in zip(items, levels)
              if "notebooks" not in marks and ("slow" in marks) == (name == "slow")]
    processes, total = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)), len(items)
    items.clear()
    for i in range(processes):
        share = notebooks[i::processes]
        room = (total - len(items)) // (processes - i) - len(share)
        items += share + others[:room]
        del others[:room]
