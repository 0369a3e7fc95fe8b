"""What the name of a file tells about it: an image, an image in a format we cannot read, litter, or anything else."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Suffixes of the images that we read, in lower case.
_IMAGES = (
    "png apng jpg jpeg jpe jfif webp bmp dib gif tif tiff ppm pgm pbm pnm "
    "pfm mpo avif avifs heic heif hif jp2 j2k jpx jpf jpc j2c"
)
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
# Suffixes of the images that we know and cannot read, by what they are.
_OTHER_IMAGES = {
    "a raw photo": (
        "3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef ptx raf raw rw2 rwl sr2 srf srw "
        "x3f"
    ),
    "a vector drawing": "svg svgz eps ai cdr emf wmf",
    "the file of a drawing program": "psd psb xcf kra ora clip afphoto",
    "a medical image": "dcm dicom nii nrrd mha mhd",
    "a microscope image": "czi lif nd2 lsm oib oif vsi svs ndpi mrxs",
    "an image of an astronomical instrument": "fits fit fts",
    "an image of high dynamic range": "hdr exr",
    "an icon": "ico cur icns ani",
    "an image in a rare format": "jxl jxr wdp hdp jls tga dds pcx sgi ras xbm xpm qoi flif bpg",
}
UNSUPPORTED = {suffix: kind for kind, suffixes in _OTHER_IMAGES.items() for suffix in suffixes.split()}
NO_SUFFIX = "without a suffix"  # kind of a file whose name ends in nothing that tells what it is
LITTER = "left by the system or by other programs"  # kind of hidden files and of those below

# Folders and files that systems and programs leave beside what people put there, in lower case.
_LITTER_FOLDERS = frozenset(
    (
        "__macosx",  # archives made by macOS
        "network trash folder",
        "temporary items",
        "$recycle.bin",  # Windows
        "recycler",
        "system volume information",
        "lost+found",  # Linux
        "@eadir",  # Synology
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "__pycache__",
        "node_modules",
    )
)
_LITTER_FILES = frozenset(
    [
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "picasa.ini",
        "icon\r",
        "__macosx",  # an empty folder, as some archives store it
        "@eadir",
        "ntuser.dat",
    ]
)
_LITTER_ENDING = re.compile(
    r"~|\.(tmp|temp|part|partial|crdownload|download|opdownload|swp|swo|lnk|url|webloc)"
    r"|zone\.identifier(:\$data)?"  # written by Windows for a file from the internet
    r"|\.[a-z]\w{1,5}:[\w.$:]+"  # other streams of a file on NTFS, as a copy to Linux shows them
)
# An ending that people mean as a suffix, unlike those of "photo 1.5 km", "image.001" or "image.jpg?w=100".
_SUFFIX = re.compile(r"[a-z]{1,12}|(?=\d*[a-z])[a-z\d]{1,5}")
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\\(?=x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})"
)


def suffix_of(name: str) -> str:
    """The suffix in lower case and without its dot; "" if the name ends in nothing that tells what the file is."""
    base = name.rpartition("/")[2]
    if base[-7:].lower() == ".nii.gz":
        return "nii"
    stem, dot, suffix = base.rpartition(".")
    suffix = suffix.lower()
    return suffix if dot and stem and _SUFFIX.fullmatch(suffix) else ""


def stem_of(name: str) -> str:
    """The last part of a name without its suffix, for comparison in any letter case."""
    base = name.rpartition("/")[2]
    stem, dot, _ = base.rpartition(".")
    return composed(stem if dot and stem else base).casefold()


def litter_of(name: str, folder: bool = False) -> str:
    """The outermost part of a path that is litter, such as "a/.git" of "a/.git/config"; "" if none is."""
    if folder:
        return _litter_folder(name)
    parent, _, base = name.rpartition("/")
    return _litter_folder(parent) or (name if _is_litter_file(base) else "")


@lru_cache(maxsize=1 << 16)
def _litter_folder(name: str) -> str:
    if not name:
        return ""
    parent, _, base = name.rpartition("/")
    litter = (
        base.startswith(".")
        or base.lower() in _LITTER_FOLDERS
        or base == "CVS"
        or re.fullmatch(r"found\.\d{3}", base.lower()) is not None
    )
    return _litter_folder(parent) or (name if litter else "")


def _is_litter_file(base: str) -> bool:
    lower = base.lower()
    if lower.startswith((".", "~$", "synofile_thumb")) or lower in _LITTER_FILES:
        return True
    return (
        suffix_of(lower) not in IMAGE_SUFFIXES
        and re.search(rf"({_LITTER_ENDING.pattern})$", lower) is not None
    )


def kind_by_signature(data: bytes) -> str:
    """What the first bytes of a file say: "image", the kind of an image that we cannot read, or "" for all else."""
    if (
        data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or data.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"))  # JPEG 2000
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        or (data[:2] == b"BM" and data[6:10] == bytes(4) and len(data) > 26)
        or re.match(rb"P[1-6f][ \t\r\n]+(#|\d)", data) is not None
        or (
            data[4:8] == b"ftyp"
            and data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
        )
    ):
        return "image"
    return UNSUPPORTED["dcm"] if data[128:132] == b"DICM" else ""


def composed(name: str) -> str:
    """A name in Unicode's composed form, since systems differ in it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def text_of(name: str) -> str:
    """A name as valid text on one line, composed. Two names with different bytes never give the same text.

    Bytes that are not UTF-8 and control characters become escapes such as "\\xe9". A backslash that already stands
    before such a code is escaped itself.
    """
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return composed(_UNPRINTABLE.sub(_escape, name))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python reads a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sorts "2" before "10", and names without digits as `sorted` does."""
    parts = re.split(r"([0-9]+)", name)
    numbers = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = numbers
    key: list[str | tuple[int, str]] = [
        (len(part), part) if position % 2 else part for position, part in enumerate(parts)
    ]
    return key, name
