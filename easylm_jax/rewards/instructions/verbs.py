"""Base forms of verbs that an answer may start with and that a tagger, seeing a capital, often takes for nouns."""

_LIST = """
    accept act add adjust admit advise aim allow analyze answer apply ask assess assume attend avoid be become begin
    believe bring build buy calculate call capture change check choose clean climb collect combine come compare
    complete compute consider consult continue convert cook copy count cover create cut dance decide define deliver
    describe design develop discover discuss do draft draw dream drink drive drop eat embrace enjoy ensure enter
    establish evaluate examine exercise explain explore express extend face fetch fill find finish fix fly focus
    fold follow forget form gather generate get give go grab grow have hear help hide highlight hold hope identify
    ignore imagine implement improve include increase inspect install introduce invest join jump keep know land
    laugh launch lead learn leave let limit list listen live locate look lose love maintain make map mark measure
    meet mix monitor move name need note notice observe offer open organize paint pass pay pick place plan plant
    play point practice prepare present prevent print produce promote protect prove provide pull push put reach read
    recall receive recognize record reduce reflect remember remove repeat replace report request research rest
    return review rewrite run save say search see seek select send set share show sing sit sleep solve speak spend
    stand start stay stop store study submit suppose swim take talk teach tell test thank think throw touch track
    train travel try turn understand update use visit wait walk want warn wash watch wear work wrap write
"""

BASE_VERBS = frozenset(_LIST.split())
