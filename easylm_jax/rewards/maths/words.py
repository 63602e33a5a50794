"""Words that stand in answers: units, things that are counted, numbers, letters' names."""

from __future__ import annotations

_UNITS = """
    degree degrees deg DEGREES; cm centimeter centimeters centimetre centimetres; m meter meters metre metres
    mm millimeter millimeters; km kilometer kilometers kilometre kilometres; in inch inches; ft foot feet
    yd yard yards; mi mile miles; g gram grams; kg kilogram kilograms; mg milligram milligrams; lb lbs pound pounds
    oz ounce ounces; ton tons tonne tonnes; s sec secs second seconds; min mins minute minutes; h hr hrs hour hours
    day days; week weeks; month months; year years yr yrs; l liter liters litre litres L; ml mL milliliter milliliters
    gallon gallons; dollar dollars USD usd; cent cents; euro euros; unit units; mph; kph; radian radians rad
    mole moles mol; newton newtons N; joule joules J; watt watts W; volt volts V; ohm ohms; hertz Hz; kelvin K
    celsius; fahrenheit
"""
UNITS: dict[str, str] = {  # each way of writing a unit, and the first of them
    word: line.split()[0] for line in _UNITS.replace("\n", ";").split(";") for word in line.split()
}

_JOINING = "per square sq cubic cu squared cubed of a the an"
JOINING = set(_JOINING.split())  # words that units are put together with

# Words behind a number that change what it says: an answer with one of them is not the number alone.
_MEANING = """
    and or not hundred thousand million billion trillion dozen half quarter third factorial mod modulo percent more
    less over under than to by if for when where plus minus times divided is are but infinity sqrt pi sin cos tan
    log ln exp th st nd rd
"""
MEANING = set(_MEANING.split())

_COUNTS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
COUNTS = {word: str(number) for number, word in enumerate(_COUNTS.split())}

_GREEK = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
GREEK = set(_GREEK.split())

# What stands behind numbers in word problems, for the normaliser of Spurious Rewards.
COUNTED_THINGS = """
    degree inch foot yard mile meter metre centimeter centimetre millimeter kilometer kilometre cm mm km mi ft
    gram kilogram milligram ounce pound ton tonne kg mg lb oz liter litre milliliter gallon quart pint cup teaspoon
    tablespoon ml second minute hour day week month year century decade min sec hr hour mph kph knot
    dollar cent penny nickel dime quarter euro peso rupee yuan yen buck joule watt volt ampere ohm newton pascal
    calorie radian hectare acre unit piece item point percent square sq cubic
    person people man woman boy girl child student teacher worker member player customer passenger kid
    dog cat cow pig sheep horse chicken duck goat rabbit fish bird bee frog animal
    apple orange banana egg cookie cake pie candy sandwich pizza slice muffin lemon tomato potato carrot
    book page pencil pen marble ball card toy stamp coin ticket box bag bottle car bus truck train bicycle bike
    tree flower plant shirt shoe hat sock room house table chair game step lap trip mark way time edge vertex side row
"""
