"""Files of short bAbI stories."""


def text(stories, person):
    """Returns stories of three questions; with two sentences each, the last two questions see others than the first."""
    return "".join(
        f"1 {person} went home.\n2 {person} slept there.\n3 Where is {person}?\thome\t1\n4 {person} left there.\n"
        f"5 Where is {person}?\tstory{i}\t4\n6 Who left?\tsomebody\t4\n"
        for i in range(stories)
    )


def write_data(root, tasks=(1, 2), person="mary"):
    """Writes the files of some tasks below a folder; returns its name."""
    folder = root / "tasks_1-20_v1-2/en"
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (folder / f"qa{task}_name_train.txt").write_text(text(10 + task, person))
        (folder / f"qa{task}_name_test.txt").write_text(text(task, person))
    return str(root)
