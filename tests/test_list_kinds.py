"""Tables, and pairs of a file of names with one of captions; and which of several lists of a folder counts."""

import pytest
from films import caption, captions, mp4, pictures, ramp, row, written

from minicogvx.data.films.folder import clip_line, scan_folder

# ---- tables


def test_a_table_is_read(tmp_path, subtests):
    pictures(tmp_path, "a.png")
    for table in (
        "file_name,text\na.png,words\n", "\ufefffile_name,text\r\na.png,words\r\n", "file_name;caption\na.png;words\n",
        "file_name\tprompt\na.png\twords\n", 'id,file_name,start,end,text\n7,./a.png,0,,"wo""r""ds"\n',
        'file_name, text, note\na.png, "words", "of\ntwo lines"\nb.png\n', "file_name ,\ttext \na.png,words\n",
    ):
        with subtests.test(msg=repr(table)):
            written(tmp_path, "metadata.csv", table)
            assert captions(tmp_path)[0]["a.png"].replace('"', "") == "words"


def test_a_table_keeps_commas_lines_and_pieces(tmp_path):
    caption(mp4(tmp_path / "a.mp4", ramp(24)), "beside")
    path = written(tmp_path, "metadata.csv", 'file_name,start,end,text,licence\na.mp4,1.5,,"late,\nvery late",CC\n'
                                             'a.mp4,,nan,x,\na.mp4,-1,,x,\na.mp4,soon,,x,\na.mp4,0,1.25,early,CC0\n')
    clips = scan_folder(tmp_path, 0.0).clips
    assert [(clip.start, round(clip.end, 2), clip.caption) for clip in clips] == [
        (1.5, 3.0, "late, very late"), (0.0, 1.25, "early")]
    assert clip_line(clips[1]) == {"file_name": "a.mp4", "start": 0.0, "end": 1.25, "text": "early", "licence": "CC0"}
    _, problems = captions(tmp_path)
    assert [problem.split(": ")[0] for problem in problems] == [f"metadata.csv, line {n}" for n in (4, 5, 6)]
    assert len(scan_folder(tmp_path, 0.0, listing=path).clips) == 2


AMBIGUOUS = {
    "a.png,a red circle, moving right": "has 3 cells for 2 columns; put a caption with ','",
    'a.png,red,"moves",right': "has 4 cells for 2 columns", 'a.png,"never closed': "not closed",
    'a.png,"never closed, "" in it': "not closed", '"a.png,words': "not closed",
    'a.png,"it has a 5" disc': "behind a closing quotation mark",
    'a.png,"one" and "two"': "behind a closing quotation mark", 'a.png,"over\ntwo" lines': "not closed",
}


def test_a_line_of_a_table_that_is_ambiguous_is_reported_and_the_others_are_used(tmp_path, subtests):
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    for (line, words), separator in ((case, separator) for case in AMBIGUOUS.items() for separator in ",;\t"):
        with subtests.test(msg=line.replace(",", separator)):
            lines = ["file_name,text", line, 'b.png,"two, quoted"', 'c.png,a\u20285" disc,,', 'd.png,"over\nlines"']
            written(tmp_path, "metadata.csv", "\r\n".join(lines).replace(",", separator))
            found, problems = captions(tmp_path)
            quoted = f"two{separator} quoted" if separator != "\t" else "two quoted"
            assert found == {"b.png": quoted, "c.png": 'a 5" disc', "d.png": "over lines"}
            words = words.replace("','", repr(separator))
            assert any("line 2" in problem and words in problem for problem in problems)


def test_a_table_that_is_none_is_reported(tmp_path, subtests):
    pictures(tmp_path, "a.png")
    for table, words in (
        ("name,text\na.png,x\n", "no column file_name"), ("", "no column file_name"),
        ("file_name,text,text\na.png,x,y\n", "2 columns text"),
        ("file_name,text, file_name\na.png,x,a.png\n", "2 columns file_name"),
        ('file_name,"text\na.png,x\n', "line 1: has a quotation mark that is not closed"),
        ("file_name,text\na.png," + "x" * 200_000, "cannot be read as a table"),
    ):
        with subtests.test(msg=table[:40]):
            written(tmp_path, "metadata.csv", table)
            assert any(words in problem for problem in captions(tmp_path)[1])


# ---- pairs


def test_a_file_of_names_and_one_of_captions(tmp_path, subtests):
    for names, prompts in (("videos.txt", "prompts.txt"), ("video.txt", "caption.txt"), ("images.txt", "prompt.txt")):
        with subtests.test(msg=names):
            folder = pictures(tmp_path / names, "in/a.png", "in/b.png", "c.png")
            written(folder, names, "./in/b.png\r\nin/a.png\r\n\r\n\r\n")  # blank lines at the end do not matter
            written(folder, prompts, "of \u2028 b\r\nof a\r\n\r\n")
            assert captions(folder)[0] == {"in/a.png": "of a", "in/b.png": "of b"}
            written(folder, names, "in/b.png\nin/a.png\n")
            written(folder, prompts, "of b\nof a\nof nothing\n")
            found, problems = captions(folder)
            assert not found and f"{names}: has 2 lines, and {prompts} has 3" in problems[0]


def test_a_file_of_captions_alone_is_no_list(tmp_path):
    pictures(tmp_path, "a.png", "prompts.png")
    written(tmp_path, "prompts.txt", "beside prompts.png")
    assert captions(tmp_path)[0] == {"prompts.png": "beside prompts.png"}


def test_a_pair_is_no_caption_of_a_video_of_its_name(tmp_path, subtests):
    for names, prompts, third in (("videos.txt", "prompts.txt", "prompts.png"), ("images.txt", "caption.txt",
                                  "caption.png"), ("videos.txt", "prompts.txt", "videos.png"),
                                  ("video.txt", "captions.txt", "video.png")):
        with subtests.test(msg=f"{names} and {third}"):
            folder = pictures(tmp_path / third, "a.png", third, "b.png")
            caption(folder / "b.png", "beside")
            written(folder, names, "a.png\n")
            written(folder, prompts, "of a\n")
            found, problems = captions(folder)
            assert found == {"a.png": "of a", "b.png": "beside"}
            assert len(problems) == 1 and f"{third}: has no caption" in problems[0]
            written(folder, names, f"a.png\n{third}\n")
            written(folder, prompts, "of a\nof the other\n")
            assert captions(folder) == ({"a.png": "of a", third: "of the other", "b.png": "beside"}, [])


# ---- several lists


def test_lists_in_sub_folders_name_what_lies_there(tmp_path):
    pictures(tmp_path, "train/a.png", "train/b.png", "test/a.png")
    written(tmp_path / "train", "metadata.jsonl", row() + "\n" + row(file_name="../test/a.png", text="across"))
    written(tmp_path / "train", "metadata.csv", "file_name,text\nb.png,table\na.png,later\n")
    assert captions(tmp_path) == ({"test/a.png": "across", "train/a.png": "words", "train/b.png": "table"}, [])
    written(tmp_path, "metadata.jsonl", row(file_name="train/a.png", text="outer"))
    assert captions(tmp_path)[0]["train/a.png"] == "outer"
    written(tmp_path / "train", "metadata.jsonl", row(file_name="../../a.png"))
    assert "train/metadata.jsonl, line 1: names" in captions(tmp_path)[1][0]


def test_a_list_without_words_does_not_hide_those_of_another(tmp_path):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "id": 1}')
    written(tmp_path, "metadata.csv", "file_name,text\na.png,table\n")
    clip, = scan_folder(tmp_path).clips
    assert clip.caption == "table" and clip_line(clip) == {"file_name": "a.png", "text": "table", "id": 1}


def test_a_list_that_cannot_be_read_is_a_problem_of_its_folder_and_an_error_where_it_is_named(tmp_path):
    pictures(tmp_path, "sub/a.png", "b.png")
    caption(tmp_path / "b.png")
    path = written(tmp_path / "sub", "metadata.jsonl", row().encode("utf-16"))
    found, problems = captions(tmp_path)
    assert list(found) == ["b.png"] and problems[0].startswith("sub/metadata.jsonl: is UTF-16")
    with pytest.raises(ValueError, match="UTF-16"):
        scan_folder(tmp_path, listing=path)


def test_a_bad_caption_beside_a_listed_file_does_not_matter(tmp_path):
    pictures(tmp_path, "a.png", "B.png")
    written(tmp_path, "a.txt", b"\xff\xfe")
    written(tmp_path, "B.TXT", "upper case")
    written(tmp_path, "metadata.jsonl", row())
    assert captions(tmp_path) == ({"B.png": "upper case", "a.png": "words"}, [])
