select
    flights.route,
    flights.origin,
    origins.airport_name as origin_name,
    flights.dest,
    dests.airport_name as dest_name,
    max(flights.distance_mi) as distance_mi,
    cast(count(distinct flights.carrier) as bigint) as carriers,
    {{ punctuality() }}
from {{ ref('stg_flights') }} as flights
left join {{ ref('stg_airports') }} as origins on flights.origin = origins.airport
left join {{ ref('stg_airports') }} as dests on flights.dest = dests.airport
group by flights.route, flights.origin, origins.airport_name, flights.dest, dests.airport_name
order by flights.route
