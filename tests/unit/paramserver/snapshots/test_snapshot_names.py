"""Names in snapshots: each stands once, whatever its block; older files, where not, still open."""

from __future__ import annotations

import random
import zlib
from base64 import b85decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from paramserver.core.array_maps import read_names
from paramserver.core.blocks import Block
from paramserver.core.entries import shared_pairs
from paramserver.core.state import SnapshotState
from paramserver.errors import SnapshotCorrupt
from paramserver.snapshots import chain
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.names import Names, keys_at

NAMES = [f"feature {n:04d}" for n in range(3_000)]
STATE = SnapshotState(
    model="m",
    spec="s",
    spec_text="t",
    version=(1, 2),
    values={
        "weights": Block("additive", {name: i / 7 for i, name in enumerate(NAMES)}),
        "bounds.range": Block("extrema", {"target": (0.0, 1.0)} | dict.fromkeys(NAMES, (1.0, 1.0))),
        "bounds.until": Block("extrema", {n: (i // 9.0,) * 2 for i, n in enumerate(NAMES[40:])}),
        "names.known": Block("count", dict.fromkeys(NAMES[::-1], 1)),
        "mixed": Block("count", {NAMES[7]: 1.0, "é\0": 2**53 + 1, NAMES[5]: -3}),
    },
    clock={1: 5},
)

# Both hold the state of tests/conformance/test_snapshot_store.py, written by the release before:
# the second only the rows of its table that changed since the first.
WHOLE = (
    "c-p0vO=uHA6vsDhWBov|7ChISENsK>W;bby(AI+@)DILr*pD#Tog_;)J8@^yHmxmHFZLp`Clx(}=A*3#LG+*=40!O+"
    ">an7rh<Fux5xmveOiG)$W(mGP-VF18@Be1@&F<2Lk;~_YFCO%99CyR{qo(d-{>XA{bL_*r$73+^IX3e9JBLr*ezkh_"
    "quQlzJbl*n>nqn?!fFbpfv=cG8Z=57OIIN-;0#nh4T1Ro{Z^ecF#>1E^AVKPG11jaFlj-Ib!49CEl)wq8QJZ<Mb$v+"
    "<Sn2709T?z3^m(s>##dJ%PKO7g^adx8WLI?zPVz-jG?OluMe?Ja-|Hgph*g$K3P~(EeHtIVt}j<Z(ci8an|Eba(v&;"
    "Pp<$?(}_L>?fgtRjnWjuc0OIEC0g_p?7Uf2QPw1OUMp#O5@I?+C6oczv(PTWbcW>iq#y+gP2;i!r!Ad8u9UFQEHt^5"
    "48k-5nN%5=Ce$j+21-^6ae!f^tfqiT6W{Ccv+CypLJ*o74h+l%G?L4}z(C+^SPt+3oC3~lG&If!G(bQMB@!4C8aXQP"
    "k~}`oQ*;U#Sy%_3_JSpum-`)BY+YFH=OYqhJ(YPEJ|gj=TrFMl5EuW3Danh9#Aq*hk(XRDC{#aO-F&F^%~O&WqY|SN"
    "1_GqDgQqMniDAa;CTUHblJuzy4lM^+bMED@)bWzrW2arCRMo>Cdly`2CA>>}oqcmY64dL(y-Rms)_0MhbLZ-$L(*Q_"
    "t?MYuOVKd9F_SP?uio!*?olcpjk2b13M+1Kln)8DhHnbH^g9J9tgwD*Rhfc(NE8@MUy4R6d!`_TLk_G2<2eHVEiJjx"
    "^zMra>y@T;3vRH&;Q5}awbkD8JHEZ<A3kvG<zQ{PSo`#GJKo>mne88{=Q?U1k*z__-5S=v4f^Vqx86L;a(7Pth%ERT"
    ">h!y&+tp$5J&gg2owdPs%^K%4q@h+ef4dq_04~lY^n?kMPWtUW<?h0lqwoFJMDiy(-hJ-%nbgwSY?eQEcw*y8?nUYk"
    "l1+LC"
)
LEANING = (
    "c-p0v?`s@I7{@o)#x&J;zEo*AY>BcSyR*M;gK*a(LZ$vd@rBk9W_O;wEV<jc?#$&!n@Cy^6$I(NQt^eSm%GGQq9Q1W"
    "fzm?hiwc4g3Z;nP+u}bEXEPU)i<>Nm&vDEQGoR=CJTuSieE8~xH(ojW+R1{VC^tux9sBYT*@oAbr(V7^H|<!bw}1O~"
    "@=xW7xi8*%;h!hH+aGV;ntf{HzVdjN`Loc#g|!AHQ13S5&<ECGP4Ks>*!zFKjnvHyheiJV1zHOk5B=An76W4;jV7Pz"
    "%|o2_l4H-V`E}~gT^ku4SGuChfFw!bcrrHD^J&CmS}*h(z(s8A>Us>#dgx<zrz(?Fx=kEI#5=}wruMZT1Li<xFu!y5"
    "_qQM2Oy|ASIr}7OFRWuiLLSaT(q8N}XhUEuX*YTz#8~V?(vH@A+KPD6CS4NNfQcUM(k8ytf@BREO}@0x1@FXkf%Rfo"
    "h(iuaH;CzFh?MmvWnu-5gffmIAe&#+X>GIPVFpPWrM^`~#IVZX03kZ^iDo&-0$U920O`7663;UoyIgiLcCce1U$-@4"
    "f$w9_aXrf}_xxELiTJL!`OK)?hATy_1QB7ysVhaomzq$VDxSB^qFQ9LI2~Oyrqv?B9M8}oV8F%7i<*ke=@nI=^SIuE"
    "0r<r{7@4YBPHBC3VY93{NV2)gY6kBhRX2A+M>*p9e_=tYx`ia2C$Fn0!-FOC?VaR};gc7ns=G+iL7ieg+{O!5MY=8d"
    "Fyh0h3sRiAmeOWPR{4JZ%>f=|9lNL+Ye(JA$z98!Eqjm7+xw$=r&Oa693Fcf9S(+`pLhz(s&z`~)gK7lK>O*eniZ^y"
    "TwC6^IanH0FXx<^E5uz_UYR3dD+_j2L+f9cBjJqOB0vFKvf74K7NBbAnuNu-xjszJ0u->3!dA&!;&8Y$%A&=WL$_q5"
    "9T~Tl1zQqcnUGfKzc#z=v3~p6r>Xr|=?_=?Pq4Dvjvi>Gov03S$NP`j!-|q^2j(ACMh2!I{_=TC`QZ7#oOeeK#5tPj"
    "Zcj(9pE$T+b*$gn?%VEod~Z!9>wjaz3$WrTK^R0(OWkij_R-?|zn=g3hvj?aZ{GVU`1`xg)76PHr~X*E>%R2Xq<-#S"
    "_P?47"
)


def older(text: str) -> bytes:
    return zlib.decompress(b85decode(text))


def test_each_name_stands_once_in_the_file_and_in_memory() -> None:
    data = snapshot_format.encode(STATE)
    assert [data.count(name.encode()) for name in (NAMES[0], NAMES[50], NAMES[-1])] == [1, 1, 1]
    values = snapshot_format.decode(data).values
    assert snapshot_format.equal(values, STATE.values)
    assert {n: list(b.data) for n, b in values.items()} == {
        n: list(b.data) for n, b in STATE.values.items()
    }, "keys stand in the order in which they stood"
    names = {key: key for key in values["weights"].data}
    shared = [key for name in values for key in values[name].data if key in names]
    assert len(shared) == 4 * len(NAMES) - 40 + 2
    assert all(names[key] is key for key in shared)
    pairs = {id(pair) for pair in values["bounds.range"].data.values()}
    assert len(pairs) == 2, "names with the same range share its pair"


def test_keys_keep_their_order_in_whatever_order_blocks_have_them() -> None:
    draw = random.Random(7)
    for _ in range(200):
        names, blocks = Names(), list[list[str]]()
        for _ in range(draw.randint(1, 5)):
            keys = [str(n) for n in range(draw.randint(0, 60))]
            kept = draw.sample(keys, draw.randint(0, len(keys)))
            blocks.append(kept if draw.random() < 0.3 else sorted(kept, key=int))
        spans = [names.spans(dict.fromkeys(keys)) for keys in blocks]
        arrays = names.arrays()
        known = read_names(arrays["keys"], arrays["ends"])
        assert len(known) == len(set(known))
        assert [keys_at(known, one) for one in spans] == blocks


def test_pairs_are_shared_only_where_their_bits_are_equal() -> None:
    sent = [(0.0, 0.0)] * 9 + [(-0.0, 0.0)] * 9 + [(5e-324, 1.0)] * 9 + [(0.0, 0.0)]
    found = shared_pairs(np.array(sent))
    assert repr(found) == repr(sent)
    assert len({id(pair) for pair in found}) == 4
    many = [(i / 3, float(i)) for i in range(50)]
    assert shared_pairs(np.array(many)) == many
    assert shared_pairs(np.empty((0, 2))) == []


@pytest.mark.parametrize("span", [[-1, 2], [0, 4], [2, 1], [0, 1]])
def test_places_that_are_no_names_are_corrupt(span: list[int]) -> None:
    small = replace(STATE, values={"w": Block("additive", {"a": 1.0, "b": 2.0, "c": 3.0})})
    whole = snapshot_format.encode(small)
    begin = snapshot_format.manifest_end(whole)
    arrays = load(whole[begin:-32])
    assert arrays["0.spans"].tolist() == [[0, 3]]
    arrays["0.spans"] = np.array([span], dtype=np.int64)
    manifest = whole[snapshot_format.FRAME_BYTES : begin]
    with pytest.raises(SnapshotCorrupt, match="payload"):
        snapshot_format.decode(snapshot_format.frame(3, manifest, save(arrays)))


def test_snapshots_of_older_formats_open(tmp_path: Path) -> None:
    for name, text in (("3-41", WHOLE), ("3-42", LEANING)):
        (tmp_path / f"{name}.snapshot").write_bytes(older(text))
    whole = chain.read_file(tmp_path / "3-41.snapshot")
    assert (whole.model, whole.version, whole.closed) == (
        "prices",
        (3, 41),
        frozenset({2, 3, 4, 7}),
    )
    values = whole.values
    assert values["w"].data == {"é": 0.1, "": -0.0, "b": 5e-324}
    assert values["x"].data["a\0b\0"] == (1.0, 0.0, 0.0)
    assert values["m"].data == {"f": (-1.0, 1e300)}
    assert repr(values["n"].data) == repr({"i": 2**53 + 1, "f": 1.0, "neg": -(2**63)})
    again = snapshot_format.decode(snapshot_format.encode(whole))
    assert snapshot_format.equal(again.values, values)
    leaning = chain.read_file(tmp_path / "3-42.snapshot").values
    assert sorted(leaning["t"].data.ids.tolist()) == [7, 9, 2**64 - 1]
    table = leaning.pop("t").data
    assert table.get(np.array([7, 9], dtype=np.uint64))[0].tolist() == [[0.5] * 3] * 2
    assert snapshot_format.equal(leaning, {n: b for n, b in values.items() if n != "t"})
