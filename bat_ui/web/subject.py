"""Step 1 of the page: the subject's pictures, their captions, what the subject is, whether to cut it out.

In: uploads and clicks.  Out: the project's draft (draft.py) and, by "Use these pictures", its subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from threading import BoundedSemaphore

import gradio as gr

from bat_ui import registry
from bat_ui.errors import UserError
from bat_ui.pictures import SUFFIXES
from bat_ui.project import Project
from bat_ui.subject import CROPS, draws_stickers, subject_warnings, template_of
from bat_ui.web import draft as drafts
from bat_ui.web.parts import Updates, address, alert, answering, html, message_box, note, opened, refusing, required
from bat_ui.web.step import Shared, Step

EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"
EXAMPLE_NAMES = {
    "flat-cat": "Cat",
    "flat-moon": "Moon",
    "outlined-monkey": "Monkey",
    "red-haired-woman": "Red-haired woman",
}
STICKER_PIXELS, PHOTO_PIXELS = 64, 1024  # width and height of what is drawn, the largest of photographs
_decoding = BoundedSemaphore(2)  # requests at once that decode pictures, which may be large
NO_PICTURE = "There is no picture of the subject: choose 3 to 10."


def build_subject_step(shared: Shared) -> Step:
    """Lay out the step and wire its events."""
    id, template, square = shared.project, template_of(shared.model.backbone), not shared.model.photos
    html(
        "<h2>Who or what is it?</h2><p>Three to ten pictures of one subject, as different from one another as you have.</p>"
    )
    files = gr.File(
        label="Pictures of your subject (JPEG, PNG or WebP)",
        file_count="multiple",
        file_types=list(SUFFIXES),
        elem_id="upload",
        height=150,
    )
    with gr.Row(elem_classes="examples"):
        html("<span>Or try an example:</span>")
        examples = {name: _example_button(name) for name in EXAMPLE_NAMES if (EXAMPLES / name).is_dir()}
    message = message_box("subject-message")
    with gr.Row():
        noun = gr.Textbox(
            "",
            label="What is it?",
            info="A word or two, such as cat or rag doll.",
            placeholder="cat",
            max_lines=1,
            elem_id="noun",
            min_width=260,
        )
        cut_out = gr.Checkbox(
            label="Cut the subject out onto white",
            info="For photos: the sticker model knows white backgrounds only.",
            elem_id="cut-out",
            min_width=260,
        )
    calling = html("", elem_id="calling")
    shown = gr.Textbox("", visible=False, label="pictures shown")
    in_card = {"queue": False, "api_visibility": "private"}  # made anew with each picture, so the page cannot set them
    with gr.Column(elem_id="subject-cards"):

        @gr.render(inputs=[id, shown], triggers=[shown.change])
        def picture_cards(project_id: str, _: str) -> None:
            project = opened(project_id)
            draft = drafts.Draft.load(project)
            boxes = []
            with gr.Row(elem_classes="cards"):
                for picture in draft.pictures:
                    with gr.Column(elem_classes="card", min_width=0):
                        cutting = drafts.cuts(draft, picture)
                        made = drafts.preview(project, picture, cutting, square) / f"{picture.name}.png"
                        html(f'<img src="{escape(address(made))}" alt="{escape(picture.name)}" width="160" height="160">')
                        box = drafts.crop_of(project, picture, cutting, square)
                        if drafts.wants_cut_out(draft) and not picture.on_white:
                            cut_it = gr.Checkbox(not picture.whole, label="Cut out", elem_classes="cut-it")
                            cut_it.input(cutter(picture.name), [id, cut_it], [message, *own], **in_card)
                        if box is not None:
                            ends = ("Left", "Middle", "Right") if box[3] - box[1] == 1 else ("Top", "Middle", "Bottom")
                            choices, label = list(zip(ends, CROPS)), f"Part of {picture.name} to use"
                            part = gr.Radio(choices, value=picture.crop, label=label)
                            part.input(cropper(picture.name), [id, part], [message, *own], **in_card)
                        label = f"Caption of {picture.name}"
                        box = gr.Textbox(
                            picture.caption, label=label, placeholder="as above", lines=2, max_lines=4, interactive=True
                        )
                        kept = {"show_progress": "hidden", "trigger_mode": "always_last"}
                        for typed in (box.input, box.blur):  # what is pasted gives no event of its own
                            typed(keeper(picture.name), [id, box], None, **kept, **in_card)
                        remove = gr.Button("Remove", size="sm", elem_classes="quiet")
                        remove.click(remover(picture.name), id, [message, *own], **in_card)
                        boxes.append(box)
            use.click(
                answering(message, user(tuple(picture.name for picture in draft.pictures))),
                [id, noun, identifier, cut_out, pattern, *boxes],
                [message, shared.tabs, *own],
                trigger_mode="once",
                **in_card,
            )

    warnings = html("", elem_id="subject-warnings")
    with gr.Accordion("Advanced", open=False):
        identifier = gr.Textbox(
            label="Identifier",
            info="The made-up word that is to mean your subject in captions and prompts.",
            value="sks",
            max_lines=1,
            elem_id="identifier",
        )
        pattern = gr.Textbox(
            "",
            label="Caption template",
            info="What pictures without a caption of their own are called; {identifier} and {class_noun} are filled in.",
            placeholder=template,
            max_lines=1,
            elem_id="caption-template",
        )
    use = gr.Button("Use these pictures", variant="primary", elem_id="use-pictures")
    own = [noun, cut_out, calling, warnings, identifier, pattern, shown, files]

    def show(project: Project | None) -> Updates:
        draft = drafts.Draft.load(project)
        cutting = drafts.wants_cut_out(draft)
        said = _warnings(project, draft, shared.model.backbone) if draft.pictures else []
        if project and drafts.is_changed(project, draft):
            said.insert(0, "What you changed is not in use yet: press “Use these pictures”.")
        pictures = "/".join(f"{p.name}{p.crop}{p.whole}" for p in draft.pictures)
        key = f"{project.folder.name if project else ''}|{cutting}|{pictures}"
        return {
            noun: draft.class_noun,
            cut_out: cutting,
            calling: _calling(draft, template),
            warnings: note(*said),
            identifier: draft.identifier,
            pattern: draft.template,
            shown: key,
            files: None,
        }

    def add(project_id: str, chosen: list[str] | None, class_noun: str, word: str) -> Updates:
        """Add uploaded pictures of the subject to a project, a new one if `project_id` is empty; `class_noun` says what it
        is, `word` is the made-up word that is to mean it."""
        project = opened(project_id) or registry.make()
        drafts.change(project, class_noun=class_noun, identifier=word)
        with _decoding:
            try:
                problems = drafts.add_pictures(project, [Path(file) for file in chosen or []])
            except UserError as problem:
                problems = [str(problem)]
            return {**show(project), id: project.folder.name, message: alert(*problems)}

    def say(project_id: str, class_noun: str, word: str, wording: str) -> Updates:
        project = opened(project_id)
        if project is None:
            return {}
        draft = drafts.change(project, class_noun=class_noun, identifier=word, template=wording.strip())
        return {calling: _calling(draft, template)}

    def cut(project_id: str, wished: bool) -> Updates:
        """Cut the subject out of its pictures onto white, or leave the backgrounds."""
        project = opened(project_id)
        if project is None:
            return {}
        drafts.change(project, cut_out=wished)
        with _decoding:
            return show(project)

    def user(names: Sequence[str]) -> Callable[..., Updates]:
        """What the button does while these pictures are shown, by name: somebody may have removed one elsewhere."""

        def use_pictures(project_id: str, class_noun: str, word: str, wished: bool, wording: str, *captions: str) -> Updates:
            project = required(project_id, NO_PICTURE)
            drafts.change(project, template=wording.strip())
            _prepare(project, shared.model.backbone, class_noun, word, wished, dict(zip(names, captions)))
            return {**show(project), shared.tabs: gr.Tabs(selected=2)}

        return use_pictures

    def use_pictures_endpoint(
        project: str,
        class_noun: str,
        identifier: str = "sks",
        cut_out: bool = False,
        captions: list[str] | None = None,
        template: str = "",
    ) -> str:
        """Make the subject from the pictures that were added, with a caption for each in their order or none; `template`
        makes the captions of those without, {identifier} and {class_noun} in it are filled in."""
        with refusing():
            found = required(project, NO_PICTURE)
            named = {
                p.name: text for p, text in zip(drafts.change(found, template=template.strip()).pictures, captions or ())
            }
            _prepare(found, shared.model.backbone, class_noun, identifier, cut_out, named)
        return project

    def cropper(name: str) -> Callable[[str, str], Updates]:
        def crop(project_id: str, part: str) -> Updates:
            project = required(project_id, NO_PICTURE)
            drafts.set_crop(project, name, part)
            return show(project)

        return answering(message, crop)

    def example_user(folder: Path) -> Callable[[str], Updates]:
        def use(project_id: str) -> Updates:
            project = _free_for_an_example(opened(project_id)) or registry.make()
            drafts.use_example(project, folder)
            return {**show(project), id: project.folder.name}

        return answering(message, use)

    def remover(name: str) -> Callable[[str], Updates]:
        def remove(project_id: str) -> Updates:
            project = opened(project_id)
            if project is None:
                return {}
            drafts.remove_picture(project, name)
            return show(project)

        return answering(message, remove)

    def cutter(name: str) -> Callable[[str, bool], Updates]:
        def cut_one(project_id: str, wished: bool) -> Updates:
            project = required(project_id, NO_PICTURE)
            drafts.set_whole(project, name, not wished)
            with _decoding:
                return show(project)

        return answering(message, cut_one)

    def keeper(name: str) -> Callable[[str, str], None]:
        def keep(project_id: str, caption: str) -> None:
            project = opened(project_id)
            if project is not None:
                drafts.set_captions(project, {name: caption})

        return keep

    files.upload(
        answering(message, add),
        [id, files, noun, identifier],
        [id, message, *own],
        api_name="add_pictures",
    )
    for name, button in examples.items():
        button.click(example_user(EXAMPLES / name), id, [id, message, *own], api_visibility="private")
    for box in (noun, identifier, pattern):
        for typed in (box.input, box.blur):
            typed(
                answering(message, say),
                [id, noun, identifier, pattern],
                [message, calling],
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
            )
    cut_out.input(answering(message, cut), [id, cut_out], [message, *own], api_name="cut_out")
    gr.api(use_pictures_endpoint, api_name="use_pictures")
    for endpoint in (crop_picture, cut_out_picture, use_example, remove_picture):
        gr.api(endpoint, api_name=endpoint.__name__)
    return Step(show, own)


def crop_picture(project: str, picture: str, part: str) -> str:
    """Choose which square of a picture of the subject is used: its start (left or top), middle or end."""
    with refusing():
        drafts.set_crop(required(project, NO_PICTURE), picture, part)
    return part


def cut_out_picture(project: str, picture: str, cut_out: bool) -> bool:
    """Cut one picture of the subject out as well as the others, or leave its background."""
    with refusing():
        drafts.set_whole(required(project, NO_PICTURE), picture, not cut_out)
    return cut_out


def use_example(example: str, project: str = "") -> str:
    """Take an example subject (flat-cat, flat-moon, outlined-monkey or red-haired-woman) in place of a project's
    pictures, in a new project if none is named; returns the project's id."""
    with refusing():
        if example not in EXAMPLE_NAMES:
            raise UserError(f"There is no such example: choose one of {', '.join(EXAMPLE_NAMES)}.")
        found = registry.find(project) if project else registry.make()
        drafts.use_example(found, EXAMPLES / example)
    return found.folder.name


def remove_picture(project: str, picture: str) -> list[str]:
    """Take a picture, by its name, out of a project's subject; returns the names of those that are left."""
    with refusing():
        found = registry.find(project)
        drafts.remove_picture(found, picture)
    return [p.name for p in drafts.Draft.load(found).pictures]


def _free_for_an_example(project: Project | None) -> Project | None:
    """The project, unless it has pictures of a person's own or was made use of: those are not replaced."""
    if project is None or project.subject_marker.is_file():
        return None
    names = {picture.name for picture in drafts.Draft.load(project).pictures}
    examples = ({file.stem for file in (EXAMPLES / name).glob("*.png")} for name in EXAMPLE_NAMES)
    return project if not names or any(names <= of_one for of_one in examples) else None


def _warnings(project: Project, draft: drafts.Draft, backbone: str) -> list[str]:
    """What may spoil the result, at the size in which the backbone draws."""
    stickers = draws_stickers(backbone)
    subject = drafts.as_subject(project, draft, template_of(backbone), square=stickers)
    kept = [p.name for p in draft.pictures if stickers and not p.on_white and not drafts.cuts(draft, p)]
    said = [f"The sticker model knows white backgrounds only, so cut {', '.join(kept)} out, or take other pictures."]
    return said * bool(kept) + subject_warnings(subject, STICKER_PIXELS if stickers else subject.size)


def _prepare(
    project: Project, backbone: str, class_noun: str, identifier: str, cut_out: bool, captions: dict[str, str]
) -> None:
    """Bring the draft up to date and make the subject from it, unless that was done before."""
    from bat_ui import line  # here, since it takes seconds to import and the page should be up before

    draft = drafts.change(project, class_noun=class_noun, identifier=identifier)
    if cut_out != drafts.wants_cut_out(draft):
        draft = drafts.change(project, cut_out=cut_out)
    if captions:
        draft = drafts.set_captions(project, captions)
    if draft.used and project.subject_marker.is_file():
        return
    square = draws_stickers(backbone)
    line.prepare(
        project,
        drafts.sources(project, draft),
        class_noun,
        template=draft.template or template_of(backbone),
        square=square,
        size=512 if square else PHOTO_PIXELS,
        captions=[p.caption or None for p in draft.pictures],
        cut_out=[drafts.cuts(draft, p) for p in draft.pictures],
        identifier=identifier,
        crops=[drafts.crop_of(project, p, drafts.cuts(draft, p), square) for p in draft.pictures],
    )
    drafts.mark_used(project, draft)


def _example_button(name: str) -> gr.Button:
    picture = sorted((EXAMPLES / name).glob("*.png"))[-1]
    button = gr.Button(EXAMPLE_NAMES[name], icon=picture, size="md", min_width=0, scale=0, elem_id=f"example-{name}")
    button.keep_in_cache.add(button.icon["path"])  # else it goes with the uploads of the day
    return button


def _calling(draft: drafts.Draft, template: str) -> str:
    if not draft.pictures:
        return ""
    caption = escape(drafts.default_caption(draft, template))
    said = f'<p>Pictures without a caption of their own are called <q id="default-caption">{caption}</q>.</p>'
    if any(drafts.cuts(draft, picture) and not picture.on_white for picture in draft.pictures):
        said += "<p>Look whether each is cut out well: if not, untick “Cut out” below it or leave it out.</p>"
    return said
